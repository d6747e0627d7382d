"""Commands on other runs than the usual one, and on mistakes."""

import re
import warnings

import pytest
from mmengine.config import Config
from PIL import Image

from commands import DIGITS, last_line, main, python
from gap_plugin.cli import console, flags
from gap_plugin.cli.command import one_line
from gap_plugin.messages import first_line, shorten

SHORT = ('train_dataloader.dataset.indices=64', 'train_cfg.max_epochs=1')


def train(folder, *options, ok=True, flags=()):
    return main('train', 'digits/test_nfnet', '--work-dir', folder, *flags,
                '--cfg-options', *SHORT, *options, ok=ok,
                prog='gap-plugin train')


def test_a_resumed_run_that_is_worse_tells_what_its_best_file_gives(
        tmp_path):
    train(tmp_path)
    text = train(tmp_path, 'train_cfg.max_epochs=2',
                 'val_evaluator.thrs=[1.0]', flags=['--resume'])
    assert re.search(r'^epoch 2/2 .* accuracy/top1 0\.00$', text, re.M)
    told, file, _ = text.splitlines()[-3:]
    assert file.endswith('best_accuracy_top1_epoch_1.pth')
    text = main('test', 'digits/test_nfnet', file, '--work-dir', tmp_path)
    assert told in text.splitlines() and told != 'accuracy/top1 0.00'


def test_a_flexible_runner_has_its_header_and_is_tested(tmp_path):
    text = train(tmp_path, 'runner_type=FlexibleRunner')
    assert re.search(r'^network  test_nfnet, 0\.19 M parameters', text, re.M)
    assert '\n\n' not in text  # no bar in a pipe leaves a line
    assert re.search(r'^epoch 1/1 .* accuracy/top1 [\d.]+$', text, re.M)
    told = re.findall(r'^accuracy/top1 ([\d.]+)$', text, re.M)
    text = main('test', 'digits/test_nfnet', tmp_path / 'epoch_1.pth',
                '--work-dir', tmp_path, '--cfg-options',
                'runner_type=FlexibleRunner')
    assert re.findall(r'^accuracy/top1 ([\d.]+)$', text, re.M) == told


def test_iterations_are_counted_where_there_are_no_epochs(tmp_path):
    path = tmp_path / 'iterations.py'
    path.write_text(
        f"_base_ = '{DIGITS}'\n"
        'train_cfg = dict(_delete_=True, by_epoch=False, max_iters=4, '
        'val_interval=2)\nparam_scheduler = None\n'
        'default_hooks = dict(checkpoint=dict(by_epoch=False))\n')
    text = main('train', path, '--work-dir', tmp_path, '--cfg-options',
                SHORT[0])
    lines = re.findall(r'^iteration (\d+/4)  loss ', text, re.M)
    assert lines == ['2/4', '4/4'] and 'epoch 0' not in text


def test_a_finished_run_that_is_resumed_names_its_file(tmp_path):
    train(tmp_path)
    text = train(tmp_path, flags=['--resume'])
    assert re.search(r'^resume ', text, re.M)
    assert 'auto' not in text
    _, file, following = text.splitlines()[-3:]
    assert file.endswith('best_accuracy_top1_epoch_1.pth')
    assert following.startswith('gap-plugin test digits/test_nfnet ')
    train(tmp_path, 'default_hooks.checkpoint.save_best=None',
          flags=['--resume'])


def test_what_is_logged_as_a_warning_while_parts_are_built_is_said(tmp_path):
    text = train(tmp_path, 'model.data_preprocessor.mean=[1,2,3]')
    assert text.count('warning: data_preprocessor.mean is [1, 2, 3]') == 1


def test_what_others_print_is_not_swallowed(capsys):
    with console.opened(verbose=False):
        print('of a hook of mine')
        print('01/02 03:04:05 - mmengine - INFO - Set random seed')
        print('01/02 03:04:05 - mmengine - WARNING - odd')
        print('Loads checkpoint by local backend')
        print()
    found = capsys.readouterr()
    assert found.out == 'of a hook of mine\n'
    assert found.err == 'warning: odd\n'


@pytest.mark.parametrize('option, part', [
    ('foo', "'foo' is not KEY=VALUE"), ('a=[1,(2', 'is not KEY=VALUE'),
    ('a=[dict(b=1,c=2)]', 'is not KEY=VALUE'),
    ('optim_wrapper.optimizer.type=AdmaW', 'no optimizer is registered'),
    ('max_epochs=7', "has no 'max_epochs'"),
    ('modle.neck=None', "did you mean 'model'?"),
])
def test_an_option_without_a_place_is_refused(option, part, tmp_path, capfd):
    text = train(tmp_path, option, ok=False) + capfd.readouterr().err
    assert part in last_line(text) and 'Traceback' not in text


def test_a_ranking_refuses_such_an_option_too(tmp_path):
    text = main('rank', '--models', 'test_vit', '--config',
                'digits/test_nfnet', '--out', tmp_path, '--cfg-options',
                'modle.neck=None', ok=False)
    assert "did you mean 'model'?" in last_line(text)


def test_a_file_that_is_no_config_is_named(tmp_path):
    file = tmp_path / 'list.txt'
    file.write_text('a.png 0')
    text = main('train', file, '--work-dir', tmp_path, ok=False)
    assert f"config '{file}' must end in .py, .json" in last_line(text)


def error_of(error, *added):
    parser = flags.parser('about')
    for flag in added:
        parser.add_argument(flag, action='store_true')
    return one_line(error, parser)


def test_arguments_become_flags_and_names_stay_as_they_are():
    text = error_of(
        ValueError("data_root='my/data_root' and force=True, '/a/out=3' "
                   'or val_share'), '--data-root', '--force', '--out',
        '--val-share')
    assert text == ("--data-root 'my/data_root' and --force, '/a/out=3' "
                    'or --val-share')
    parser = flags.parser('about')
    parser.add_argument('--no-preprocessing', dest='preprocessing',
                        action='store_false')
    assert one_line(ValueError('with preprocessing=False it'), parser) == (
        'with --no-preprocessing it')


def images(root, count):
    """Two classes, so many different images each."""
    for name in ('black', 'white'):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new('RGB', (40 + i, 40), name).save(
                root / name / f'{i}.png')


def test_an_error_of_a_worker_is_told_by_its_cause():
    text = ('Caught ValueError in DataLoader worker process 0.\nOriginal '
            "Traceback:\n  ...\nValueError: 'x.jpg' cannot be read\n")
    assert first_line(ValueError(text)) == "ValueError: 'x.jpg' cannot be read"


def test_a_broken_image_is_named_by_a_worker_of_a_training(tmp_path):
    images(tmp_path / 'images', 8)
    main('new_config', 'test_resnet', '--data-root',
         tmp_path / 'images', '--out', tmp_path / 'c.py', '--img-size', 64,
         '--epochs', 1, '--batch-size', 4, '--workers', 1)
    for path in (tmp_path / 'images').rglob('*.png'):
        path.write_bytes(b'')
    text = main('train', tmp_path / 'c.py', '--work-dir', tmp_path / 'w',
                '--cfg-options', 'model.backbone.pretrained=False', ok=False)
    line = last_line(text)
    assert ': error: ' in line and 'Caught' not in line
    assert 'it is no image that Pillow knows' in line and '.log)' in line


def test_images_that_are_left_out_are_said(tmp_path):
    images(tmp_path / 'images', 6)
    main('new_config', 'test_resnet', '--data-root', tmp_path / 'images',
         '--out', tmp_path / 'c.py', '--img-size', 64, '--workers', 0)
    cfg = Config.fromfile(str(tmp_path / 'c.py'))
    first = cfg.train_dataloader.dataset.ann_file
    with open(first, encoding='utf-8') as file:
        name = file.readline().rsplit(' ', 1)[0]
    (tmp_path / 'images' / name).write_bytes(b'')
    text = main('extract', tmp_path / 'c.py', '--splits', 'train', '--out',
                tmp_path / 'out', '--skip-bad', '--work-dir', tmp_path,
                '--cfg-options', 'model.backbone.pretrained=False')
    assert f"1 of 10 images of 'train' cannot be read: '{tmp_path}" in text
    # the next command reads the same store
    following = last_line(text)
    assert following.startswith(f'gap-plugin probe {tmp_path}/c.py --freeze')
    assert ' --skip-bad' in following
    assert ' --cfg-options model.backbone.pretrained=False' in following


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    train(tmp_path, 'model.backbone.model_name=test_convnext')
    path = tmp_path / 'epoch_1.pth'
    for command, *more in (('test', path), ('extract', '--checkpoint', path),
                           ('probe', '--freeze', '--checkpoint', path)):
        text = main(command, 'digits/test_nfnet', *more, '--work-dir',
                    tmp_path, ok=False)
        assert re.search(r'does not fit .*\d+ weights missing',
                         last_line(text))
    text = python('gap_plugin.stock', 'test', DIGITS, path, '--work-dir',
                  tmp_path, ok=False)
    assert re.search(r'does not fit .*\d+ weights missing', last_line(text))


def test_many_names_are_cut_with_their_count():
    assert shorten('abcde') == "'a', 'b', 'c', 'd', 'e'"
    assert shorten('abcdefg') == "'a', 'b', 'c', 'd', 'e', ... (7)"


def test_warnings_are_said_once_and_idle_ones_not(capsys):
    with console.opened(verbose=False), warnings.catch_warnings():
        warnings.simplefilter('always')
        for _ in range(2):
            warnings.warn('matters', stacklevel=1)
            warnings.warn('"FileClient" will be deprecated', stacklevel=1)
    assert capsys.readouterr().err == 'warning: matters\n'
