"""MMPretrain's own scripts, unmodified, on our model."""

import argparse
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from commands import DIGITS, ROOT, last_line, python
from errors import Bomb
from gap_plugin.stock import scripts
from gap_plugin.stock.launch import MISSING
from networks import full


def stock(name, *args, ok=True, cwd=ROOT, **kwargs):
    """Run a script by the launcher."""
    return python('gap_plugin.stock', name, *args, ok=ok, cwd=cwd, **kwargs)


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    """A folder of images, a config, and what training and testing left."""
    folder = tmp_path_factory.mktemp('stock')
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for i, label in enumerate('ab'):
            (folder / 'd' / split / label).mkdir(parents=True)
            for j in range(8):
                pixels = rng.integers(0, 120, (40, 40, 3)) + 100 * i
                Image.fromarray(pixels.astype(np.uint8)).save(
                    folder / 'd' / split / label / f'{j}.png')
    cfg = Config.fromfile(DIGITS)
    pipeline = [dict(type='LoadImageFromFile'),
                dict(type='Resize', scale=(32, 32)), dict(type='PackInputs')]
    for split, name in (('train', 'train'), ('val', 'val'), ('val', 'test')):
        loader = cfg[f'{name}_dataloader']
        loader.dataset = dict(
            type='CustomDataset', data_root=str(folder / 'd'),
            data_prefix=split, pipeline=pipeline)
        loader.batch_size = 4
    cfg.model.head.num_classes = 2
    cfg.model.backbone.model_name = 'test_resnet'
    cfg.train_cfg.max_epochs = 1
    cfg.param_scheduler = [dict(type='CosineAnnealingLR', end=1,
                                convert_to_iter_based=True)]
    cfg.dump(folder / 'config.py')
    stock('train', folder / 'config.py', '--work-dir', folder / 'w')
    stock('test', folder / 'config.py', folder / 'w' / 'epoch_1.pth',
          '--work-dir', folder / 't', '--out', folder / 'result.pkl')
    return folder


def picture(path):
    """A PNG with more than one colour."""
    with Image.open(path) as image:
        assert len(image.convert('RGB').getcolors(1 << 24)) > 1


def log_of(work):
    (path, ) = (work / 'w').glob('*/vis_data/scalars.json')
    return path


def test_logs_are_analysed(work, tmp_path):
    stock('analyze_logs', 'plot_curve', log_of(work), '--keys',
          'accuracy/top1', '--out', tmp_path / 'curve.png')
    picture(tmp_path / 'curve.png')
    assert 'average' in stock('analyze_logs', 'cal_train_time', log_of(work))


def test_results_are_analysed(work, tmp_path):
    stock('analyze_results', work / 'config.py', work / 'result.pkl',
          '--out-dir', tmp_path, '--topk', 2)
    assert list(tmp_path.glob('*/*.png'))


def test_metrics_are_computed_from_a_result_file(work):
    reported = pickle.loads(  # noqa: S301, our own file
        (work / 'result.pkl').read_bytes())
    right = np.mean([int(r['pred_score'].argmax() == r['gt_label'])
                     for r in reported])
    text = stock('eval_metric', work / 'result.pkl', '--metric',
                 'type=Accuracy', 'topk=1')
    assert float(re.search(r"'accuracy/top1': ([\d.]+)", text)[1]
                 ) == pytest.approx(100 * right)


@pytest.mark.parametrize('source', ['result.pkl', full('w/epoch_1.pth')])
def test_a_confusion_matrix_is_made(work, source, tmp_path):
    stock('confusion_matrix', work / 'config.py', work / source, '--out',
          tmp_path / 'm.pkl', '--show-path', tmp_path / 'm.png')
    picture(tmp_path / 'm.png')


def test_operations_are_counted(work):
    text = stock('get_flops', work / 'config.py', '--shape', 32)
    assert re.search(r'Flops:\s+[\d.]+[MGK]', text)


def test_a_config_is_printed(work):
    assert 'TimmFeatureBackbone' in stock('print_config', work / 'config.py')


def test_a_dataset_is_verified(work, tmp_path):
    stock('verify_dataset', work / 'config.py', '--out-path',
          tmp_path / 'broken.log')


@pytest.mark.parametrize('mode', [full('original'), 'transformed',
                                  full('pipeline'), full('concat')])
def test_a_dataset_is_browsed(work, mode, tmp_path):
    stock('browse_dataset', work / 'config.py', '-o', tmp_path, '--not-show',
          '-n', 2, '-m', mode)
    pictures = list(tmp_path.rglob('*.png'))
    assert len(pictures) == 2
    picture(pictures[0])


@pytest.mark.full
def test_a_schedule_is_drawn(work, tmp_path):
    stock('vis_scheduler', work / 'config.py', '--not-show', '--save-path',
          tmp_path / 's.png')
    picture(tmp_path / 's.png')


# of 'pre_logits' the script takes every row for a level of its own
@pytest.mark.parametrize('stage', [full('backbone'), full('neck')])
def test_features_are_drawn_in_the_plane(work, stage, tmp_path):
    stock('vis_tsne', work / 'config.py', '--checkpoint',
          work / 'w' / 'epoch_1.pth', '--work-dir', tmp_path, '--vis-stage',
          stage, '--perplexity', 3, '--n-iter', 250, '--device', 'cpu')
    pictures = list(tmp_path.rglob('*.png'))
    assert pictures
    picture(pictures[0])


def test_transforms_of_ours_are_found(tmp_path):
    stock('vis_tsne', DIGITS, '--work-dir', tmp_path, '--max-num-samples', 4,
          '--perplexity', 3, '--n-iter', 250, '--device', 'cpu')
    assert list(tmp_path.rglob('*.png'))


@pytest.mark.full
def test_folds_are_trained_on(work, tmp_path):
    stock('kfold-cross-valid', work / 'config.py', '--num-splits', 2,
          '--work-dir', tmp_path)
    assert len(list(tmp_path.glob('fold*/epoch_1.pth'))) == 2
    stock('kfold-cross-valid', work / 'config.py', '--num-splits', 2,
          '--work-dir', tmp_path, '--resume')


def test_a_checkpoint_is_published(work, tmp_path):
    stock('publish_model', work / 'w' / 'epoch_1.pth', tmp_path / 'p.pth')
    (path, ) = tmp_path.glob('p_*.pth')
    published = torch.load(path, weights_only=True)
    trained = torch.load(work / 'w' / 'epoch_1.pth', weights_only=True)
    assert 'optimizer' not in published
    for name, value in trained['state_dict'].items():
        assert torch.equal(published['state_dict'][name], value)
    stock('test', work / 'config.py', path, '--work-dir', tmp_path,
          process=True)


@pytest.mark.full
def test_frames_of_pandas_are_appended_to():
    # the rest of shape_bias.py fetches pictures from the network
    code = ('import pandas as p\n'
            'from gap_plugin.stock.old_names import pandas_append\n'
            'pandas_append()\n'
            'a = p.DataFrame().append(p.DataFrame(dict(x=[1])))\n'
            'print(a.append(p.DataFrame(dict(x=[2]))).x.tolist())')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code],
                          capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith('[1, 2]')


@pytest.mark.full
def test_a_branched_network_is_merged_for_deployment(work, tmp_path):
    cfg = Config.fromfile(work / 'config.py')
    cfg.model.backbone.model_name = 'repvgg_a0'
    cfg.dump(tmp_path / 'config.py')
    stock('train', tmp_path / 'config.py', '--work-dir', tmp_path / 'w')
    stock('reparameterize_model', tmp_path / 'config.py',
          tmp_path / 'w' / 'epoch_1.pth', tmp_path / 'd.pth')
    before, after = (torch.load(path, weights_only=True)['state_dict']
                     for path in (tmp_path / 'w' / 'epoch_1.pth',
                                  tmp_path / 'd.pth'))
    assert len(after) < len(before) / 2


@pytest.mark.parametrize('name', ['publish_model',
                                  full('confusion_matrix'), full('vis_tsne'),
                                  'reparameterize_model'])
def test_a_checkpoint_with_code_is_refused(work, name, tmp_path):
    path = tmp_path / 'bomb.pth'
    marker = tmp_path / 'gone_off'
    torch.save(dict(state_dict={}, meta={}, bomb=Bomb(marker)), path)
    args = {
        'publish_model': (path, tmp_path / 'p.pth'),
        'confusion_matrix': (work / 'config.py', path),
        'vis_tsne': (work / 'config.py', '--checkpoint', path),
        'reparameterize_model': (work / 'config.py', path,
                                 tmp_path / 'r.pth'),
    }[name]
    text = stock(name, *args, ok=False, cwd=tmp_path)
    assert last_line(text).startswith('gap_plugin.stock: error: checkpoint ')
    assert 'which is not run (it asks for ' in last_line(text)
    assert 'weights_only' not in text and not marker.exists()


def test_a_module_of_ones_own_is_imported_first(tmp_path):
    torch.save(dict(state_dict={}, args=argparse.Namespace()),
               tmp_path / 'in.pth')
    (tmp_path / 'allowed.py').write_text(
        "import gap_plugin\ngap_plugin.allow_classes('argparse.Namespace')")
    args = 'publish_model', 'in.pth', 'out.pth'
    stock(*args, ok=False, cwd=tmp_path)
    stock('--import', 'allowed', *args, cwd=tmp_path)
    assert list(tmp_path.glob('out_*.pth'))
    line = stock('--import', 'no_such', *args, ok=False, cwd=tmp_path)
    assert line.strip().splitlines()[-1] == (
        "gap_plugin.stock: error: No module named 'no_such'")


def test_an_unknown_script_is_named():
    line = stock('publish', ok=False).strip().splitlines()[-1]
    assert line.startswith(
        "gap_plugin.stock: error: 'publish' is no script of MMPretrain")
    assert 'publish_model' in line
    line = stock('', ok=False).strip().splitlines()[-1]
    assert line.startswith(
        'gap_plugin.stock: error: no script is named, use one of')


def test_every_script_is_a_file():
    assert {'train', 'test', 'kfold-cross-valid', 'vis_cam', 'publish_model',
            'shape_bias'} <= set(scripts())
    assert all(path.is_file() for path in scripts().values())


def test_the_supplied_module_tells_what_is_installed(tmp_path):
    code = ('import pkg_resources as p\n'
            'print(p.get_distribution("timm").version)\n'
            'print(p.parse_version("1.10") > p.parse_version("1.9"))\n'
            'try:\n    p.get_distribution("no-such-thing")\n'
            'except p.DistributionNotFound:\n    print("missing")\n'
            'from mmengine.utils import get_installed_path, is_installed\n'
            'print(is_installed("timm"), get_installed_path("timm"))')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True,
                          text=True, env={**os.environ,
                                          'PYTHONPATH': str(MISSING)},
                          check=True, cwd=tmp_path)
    import timm
    assert done.stdout.split() == [
        timm.__version__, 'True', 'missing', 'True',
        str(Path(timm.__file__).parent)]


def test_a_base_config_of_the_host_is_inherited(tmp_path):
    (tmp_path / 'c.py').write_text(
        "_base_ = ['mmpretrain::_base_/default_runtime.py']\n")
    assert 'IterTimerHook' in stock('print_config', tmp_path / 'c.py')


def test_importing_changes_no_library():
    code = ('import matplotlib._tight_bbox as t, sklearn.manifold as m\n'
            'a, b = t.adjust_bbox, m.TSNE\n'
            'import gap_plugin, gap_plugin.stock\n'
            'assert (a, b) == (t.adjust_bbox, m.TSNE)')
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)
