"""What a person reads: few lines, the result, an error in one line."""

import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from commands import (
    DIGITS,
    MODULES,
    OURS,
    PATH,
    ROOT,
    call,
    last_line,
    main,
)
from gap_plugin.__main__ import COMMANDS

SHORT = ('--cfg-options', 'train_dataloader.dataset.indices=256',
         'train_cfg.max_epochs=2')
ESCAPE = '\x1b'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Two epochs of the first command of the README, and their folder."""
    folder = tmp_path_factory.mktemp('console')
    text = main('train', 'digits/test_nfnet', '--work-dir', folder, *SHORT,
                prog='gap-plugin train')
    return text.splitlines(), folder


def test_a_header_comes_ahead_of_the_first_epoch(run):
    lines, folder = run
    first = next(i for i, line in enumerate(lines)
                 if line.startswith('epoch 1/2 '))
    assert first <= 20
    header = dict(line.split(maxsplit=1) for line in lines[:first])
    assert header['network'].startswith('test_nfnet, 0.19 M parameters')
    assert header['device'] in ('cpu', 'cuda:0', 'mps:0')
    assert header['train'] == '256 images, 10 classes, batches of 64'
    assert header['val'] == '355 images, 10 classes'
    assert (ROOT / header['log']).is_file()


def test_an_epoch_is_a_line(run):
    lines, _ = run
    epochs = [line for line in lines if line.startswith('epoch ')]
    assert len(epochs) == 2
    for i, line in enumerate(epochs):
        assert re.fullmatch(
            rf'epoch {i + 1}/2  loss [\d.]+  lr [\d.e-]+  [\d.]+ s  '
            r'accuracy/top1 [\d.]+', line)


def test_the_last_lines_are_the_result_its_file_and_the_next_command(run):
    lines, folder = run
    result, file, following = lines[-3:]
    best = max(float(line.split()[-1]) for line in lines
               if line.startswith('epoch '))
    assert result == f'accuracy/top1 {best:.2f}'
    assert (ROOT / file).is_file() and (ROOT / file).parent == folder
    assert following == (
        f'gap-plugin test digits/test_nfnet {file} --work-dir {folder}')


def test_the_next_command_reports_the_same(run):
    lines, _ = run
    _, command, *args = shlex.split(lines[-1])
    assert lines[-3] in main(command, *args).splitlines()


def test_the_log_file_has_what_mmengine_writes(run):
    lines, folder = run
    header = dict(line.split(maxsplit=1) for line in lines[:8])
    log = (ROOT / header['log']).read_text()
    for part in ('System environment:', 'Hooks will be executed',
                 "model_name='test_nfnet'", 'Epoch(train)', 'Epoch(val)',
                 'Checkpoints will be saved to'):
        assert part in log and part not in '\n'.join(lines)


def test_what_nobody_can_change_is_not_told(run):
    lines, _ = run
    for word in ('MultiScaleDeformableAttention', 'FileClient',
                 'HardDiskBackend', 'Warning', 'mmengine'):
        assert not [line for line in lines if word in line]


def test_a_loss_that_is_not_finite_is_said_and_ends_in_an_error(tmp_path):
    text = main('train', DIGITS, '--work-dir', tmp_path, *SHORT,
                'optim_wrapper.optimizer.lr=1e30', ok=False)
    first, second = re.findall('(?m)^epoch .*', text)
    assert first.startswith('epoch 1/2  loss nan  NOT FINITE in 3 of 4 steps')
    assert 'NOT FINITE in 4 of 4 steps' in second
    assert ': error: the loss was NaN or infinite, first in epoch 1/2, ' in (
        last_line(text))


def test_verbose_shows_all_that_mmengine_writes(tmp_path):
    text = main('train', DIGITS, '--work-dir', tmp_path, '--verbose', *SHORT)
    assert 'System environment:' in text and 'Epoch(val)' in text


ERRORS = {
    'no config': (['train', 'digits/test_nfne'], 'digits/test_nfnet'),
    'unknown key': (['train', DIGITS, '--cfg-options',
                     'model.backbone.modelname=x'], 'modelname'),
    'batch': (['train', DIGITS, '--cfg-options',
               'train_dataloader.batch_size=5000'], '5000'),
    'no checkpoint': (['test', DIGITS, 'nowhere.pth'], 'nowhere.pth'),
    'no command': (['trian'], 'trian'),
}


@pytest.mark.parametrize('kind', ERRORS)
def test_an_error_is_one_line_on_standard_error(kind, capfd, tmp_path,
                                                monkeypatch):
    from gap_plugin import __main__
    arguments, part = ERRORS[kind]
    if arguments[1:]:
        options = arguments.index('--cfg-options') if (
            '--cfg-options' in arguments) else len(arguments)
        arguments = [*arguments[:options], '--work-dir', tmp_path,
                     *arguments[options:]]
    with pytest.raises(SystemExit) as ended:
        __main__.main([str(argument) for argument in arguments])
    told = capfd.readouterr().err
    # what a string is given to, the interpreter prints
    line = ended.value.code if isinstance(ended.value.code, str) else told
    assert ended.value.code and 'Traceback' not in told
    assert len(line.strip().splitlines()) == 1
    assert re.match(r'gap-plugin( \w+)?: error: ', line) and part in line


def test_workers_that_persist_without_workers_are_no_error(tmp_path):
    """What MMEngine ends in a traceback for is put right."""
    text = main('train', DIGITS, '--work-dir', tmp_path, *SHORT,
                'train_dataloader.num_workers=0',
                'train_dataloader.persistent_workers=True')
    assert re.match(r'accuracy/top1 [\d.]+$', text.splitlines()[-3])


def test_a_pipe_gets_no_escape_codes(tmp_path):
    text = call(sys.executable, '-m', 'gap_plugin', 'train', DIGITS,
                '--work-dir', tmp_path, *SHORT)
    assert ESCAPE not in text
    assert len(text.splitlines()) < 20


@pytest.mark.parametrize('colours', [False, pytest.param(
    True, marks=pytest.mark.full)])
def test_no_color_is_obeyed_on_a_terminal(colours, tmp_path):
    here, there = pty.openpty()
    env = {**os.environ, 'TERM': 'xterm-256color', 'PATH': PATH,
           'OMP_NUM_THREADS': '1', 'COLUMNS': '100'}
    env.pop('NO_COLOR', None)
    if not colours:
        env['NO_COLOR'] = '1'
    process = subprocess.Popen(
        [sys.executable, '-m', 'gap_plugin', 'train', str(DIGITS),
         '--work-dir', str(tmp_path), *SHORT], stdout=there, stderr=there,
        env=env, cwd=ROOT)
    os.close(there)
    text = b''
    while True:
        try:
            some = os.read(here, 65536)
        except OSError:  # the other end is closed
            break
        text += some
        if not some:
            break
    os.close(here)
    assert process.wait() == 0, text.decode()
    # a style of letters, or a movement of a bar
    assert (ESCAPE in text.decode()) is colours, text.decode()[:500]
    assert 'accuracy/top1' in text.decode()


@pytest.mark.parametrize('script', [
    script if script == 'train.py' else
    pytest.param(script, marks=pytest.mark.full) for script in MODULES])
def test_a_script_is_a_process(script):
    text = call(sys.executable, OURS / script, '--help')
    assert text.lstrip().startswith(f'usage: {script}')


@pytest.mark.parametrize('command', COMMANDS)
def test_a_command_is_a_process(command):
    """The one start of each command at the default level."""
    text = call(sys.executable, '-m', 'gap_plugin', command, '--help')
    assert text.lstrip().startswith(f'usage: gap-plugin {command}')


def test_every_command_has_a_script():
    assert {Path(script).stem for script in MODULES} == {
        path.stem for path in OURS.glob('*.py')}
    assert set(MODULES.values()) == {name for name, _ in COMMANDS.values()}
