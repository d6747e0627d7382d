"""Backbones ranked on one's data, by the tool as a user runs it."""

import csv
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings

import psutil
import pytest
import timm
from mmengine.config import Config
from PIL import Image
from safetensors.torch import save_file

from commands import DIGITS, OURS, ROOT, python
from folders import images
from gap_plugin.ranking import chosen_models, measure, plot
from gap_plugin.ranking.measure import check_data, measured_by
from gap_plugin.ranking.options import RankingOptions, base_config

TOOL = OURS / 'rank_backbones.py'


def flags(out, *args):
    return ['--out', str(out), '--epochs', '2', '--timing-batch', '2',
            *map(str, args)]


def ranked(out, *args, ok=True):
    return python(TOOL, *flags(out, *args), ok=ok)


def table(out):
    with open(out / 'ranking.csv', encoding='utf-8') as file:
        return {row['model']: row for row in csv.DictReader(file)}


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """Weights of two networks, and none of a third one."""
    folder = tmp_path_factory.mktemp('weights')
    for name in ('test_resnet', 'test_vit'):
        save_file(timm.create_model(name).state_dict(),
                  folder / f'{name}.safetensors')
    return folder


@pytest.mark.full
def test_networks_are_ranked_and_one_that_fails_is_reported(weights,
                                                            tmp_path):
    args = ('--config', DIGITS, '--weights', weights, '--lr', 1e-3, 1e-2)
    # killed while it is at the second one, which takes 3 s at least
    process = subprocess.Popen(
        [sys.executable, '-W', 'ignore', TOOL, *flags(
            tmp_path, '--models', 'test_resnet', 'test_vit', *args)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    while not (tmp_path / 'networks' / 'test_vit').exists():
        assert process.poll() is None
        time.sleep(.05)
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    process.wait()
    assert not psutil.wait_procs(children, 60)[1]  # none goes on alone
    first = table(tmp_path)
    assert list(first) == ['test_resnet']
    # in another order and with another one, it goes on
    text = ranked(tmp_path, '--models', 'test_convnext', 'test_vit',
                  'test_resnet', *args)
    assert '[1/3] test_convnext: ValueError: ' in text
    assert 'has no test_convnext.safetensors' in text
    assert '[3/3] test_resnet: ' in text and 'as measured before' in text
    assert '2 of 3 networks ranked, 1 failed' in text
    rows = table(tmp_path)
    assert rows['test_resnet'] == {**first['test_resnet'],
                                   'pareto': rows['test_resnet']['pareto']}
    assert 'ValueError' in rows['test_convnext']['error']
    for name in ('test_resnet', 'test_vit'):
        row = rows[name]
        assert float(row['accuracy']) > 10
        assert float(row['images_per_s']) > 0
        assert float(row['lr']) in (1e-3, 1e-2)
        model = timm.create_model(name, num_classes=0)
        assert int(row['features']) == model.num_features
        assert float(row['params_m']) == pytest.approx(sum(
            p.numel() for p in model.parameters()) / 1e6, rel=.03)
        assert not (tmp_path / 'networks' / name / 'features' / 'val'
                    ).exists()
    assert '| test_convnext | failed: ' in (
        tmp_path / 'ranking.md').read_text()
    with Image.open(tmp_path / 'ranking.png') as image:
        assert image.size == (1500, 975)
    # other epochs are another measurement
    text = ranked(tmp_path, '--models', 'test_vit', *args, '--epochs', 1)
    assert 'as measured before' not in text


class TwoArguments(Exception):
    """Cannot be built of the text that a pickle of it holds."""

    def __init__(self, one, other):
        super().__init__(f'{one} without {other}\nand more')


def fails(how):
    """A network that cannot be measured."""
    if how == 'error':
        raise TwoArguments('a head', 'a neck')
    if how != 'status':
        os.kill(os.getpid(), how)
    os._exit(3)


def test_the_error_of_a_network_is_sent_as_text(tmp_path):
    receiver, sender = multiprocessing.Pipe(duplex=False)
    with pytest.raises(SystemExit), warnings.catch_warnings():
        measure.logged(sender, tmp_path / 'log.txt', fails, 'error')
    assert receiver.recv() == dict(
        error='TwoArguments: a head without a neck')
    assert 'and more' in (tmp_path / 'log.txt').read_text()


@pytest.mark.full
@pytest.mark.parametrize('how, told', [
    ('error', 'TwoArguments: a head without a neck'),
    ('status', 'its process ended with status 3'),
    (signal.SIGSEGV, 'its process ended with SIGSEGV'),
    (signal.SIGKILL, 'its process was killed: the memory may be')])
def test_how_a_network_failed_is_told(tmp_path, how, told):
    row = measure.isolated(tmp_path / 'log.txt', fails, how)
    assert row['error'].startswith(told)
    assert row['error'].endswith(f' ({tmp_path / "log.txt"})')


@pytest.fixture
def broken(tmp_path):
    """A folder of images, one of them broken."""
    for label in 'ab':
        for i in range(30):
            path = tmp_path / 'd' / label / f'{i}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (8, 8), (i, 0, 0)).save(path)
    (tmp_path / 'd' / 'b' / '1.png').write_bytes(b'no image')
    return tmp_path


def test_a_broken_image_ends_the_ranking_with_its_first_network(broken):
    text = ranked(broken / 'out', '--models', 'test_resnet', 'test_vit',
                  '--no-pretrained', '--data-root', broken / 'd', ok=False)
    (line, ) = [line for line in text.splitlines()
                if line.startswith('rank_backbones.py: error: ')]
    assert 'b/1.png' in line and '--skip-bad' in line
    assert len(list((broken / 'out' / 'networks').iterdir())) == 1


@pytest.mark.full
def test_a_broken_image_is_left_out_of_a_ranking(broken):
    ranked(broken / 'out', '--models', 'test_vit', '--no-pretrained',
           '--data-root', broken / 'd', '--skip-bad')
    assert list(table(broken / 'out')) == ['test_vit']


def test_patterns_choose_networks():
    assert chosen_models(
        ['test_vit?', 'resnet18', 'test_vit2', 'resnet18.a1_in1k'],
        True) == ['test_vit2', 'test_vit3', 'resnet18', 'resnet18.a1_in1k']
    assert 'test_vit4' in chosen_models(['test_vit*'], False)
    with pytest.raises(ValueError, match="'nothing\\*' fits no network"):
        chosen_models(['nothing*'], False)
    with pytest.raises(ValueError, match='resnet1888'):
        chosen_models(['resnet1888'], True)


def row(name, accuracy, rate, params=1.):
    return dict(model=name, accuracy=accuracy, images_per_s=rate,
                params_m=params, metric='accuracy/top1')


def test_the_front_is_what_no_other_network_beats_in_both():
    rows = [row('slow', 90, 1), row('beaten', 80, 2), row('fast', 70, 9),
            row('equal', 85, 5), row('slower', 85, 4)]
    assert [r['model'] for r in plot.pareto(rows)] == ['fast', 'equal',
                                                       'slow']


@pytest.mark.parametrize('count', [1, 2, 60])
def test_a_plot_has_names_apart_from_each_other(count):
    rows = [row(f'network_number_{i}', 90 - i / 3, 10 + 7 * (i * 37 % 60),
                1 + i) for i in range(count)]
    figure = plot.draw(rows)
    figure.draw_without_rendering()
    (axes, ) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    frame = axes.get_window_extent()
    assert len(boxes) == count if count < 3 else len(boxes) > 15
    for i, box in enumerate(boxes):
        assert frame.x0 < box.x0 and box.x1 < frame.x1
        assert frame.y0 < box.y0 and box.y1 < frame.y1
        assert not any(box.overlaps(other) for other in boxes[i + 1:])


def test_images_replaced_under_their_names_are_other_data(tmp_path):
    for label in 'ab':
        images(tmp_path / 'd' / label, 4, start=10 * ord(label))
    base = base_config(RankingOptions(tmp_path, data_root=tmp_path / 'd'))
    before = check_data(base)
    assert check_data(base) == before
    path = tmp_path / 'd' / 'a' / '970.png'
    shutil.copy(path.with_name('971.png'), path)
    assert check_data(base) != before


def test_a_named_engine_measures_anew(tmp_path):
    base = Config()
    auto, exact = (measured_by('test_vit', base, '', RankingOptions(
        tmp_path, engine=engine)) for engine in ('auto', 'torch'))
    assert exact != auto
    assert 'engine' not in auto  # as of rankings ahead of the choice


def test_a_metric_of_which_less_is_better_ranks_nothing(tmp_path):
    options = RankingOptions(
        tmp_path, config=str(DIGITS),
        cfg_options={'default_hooks.checkpoint.rule': 'less'})
    with pytest.raises(ValueError, match='less is better'):
        base_config(options)
