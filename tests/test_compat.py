"""Hosts, and loading checkpoints without running code."""

import os
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, load_checkpoint
from test_backbone import Bomb

import gap_plugin.compat as compat


def run(code):
    return subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', textwrap.dedent(code)],
        capture_output=True, text=True, env={**os.environ}, check=False)


def host_checkpoint(path):
    history = HistoryBuffer([1.0, 3.0], [1, 1])
    torch.save(
        dict(
            state_dict=dict(weight=torch.ones(2)),
            message_hub=dict(log_scalars=dict(loss=history)),
            meta=dict(epoch=3)), path)


def test_checkpoints_of_mmengine_load(tmp_path):
    path = str(tmp_path / 'epoch_3.pth')
    host_checkpoint(path)
    checkpoint = CheckpointLoader.load_checkpoint(path, 'cpu')
    assert checkpoint['meta'] == dict(epoch=3)
    loss = checkpoint['message_hub']['log_scalars']['loss']
    assert (loss.mean(), loss.max(), loss.current()) == (2.0, 3.0, 3.0)
    assert torch.load(path)['meta'] == dict(epoch=3)


def test_pickle_with_code_is_refused_by_mmengine_and_not_run(tmp_path):
    path, mark = str(tmp_path / 'bomb.pth'), tmp_path / 'mark'
    torch.save(dict(state_dict=dict(a=Bomb(mark))), path)
    with pytest.raises(ValueError, match='carries pickled code') as info:
        load_checkpoint(torch.nn.Linear(1, 1), path)
    assert path in str(info.value) and '\n' not in str(info.value)
    assert not mark.exists()


class Climber:
    """A pickle that asks ``getattr`` for more than statistics."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


def test_getattr_of_checkpoints_gives_statistics_alone(tmp_path):
    path = str(tmp_path / 'climber.pth')
    torch.save(dict(a=Climber()), path)
    with pytest.raises((ValueError, pickle.UnpicklingError)) as info:
        torch.load(path)
    assert '__init__' in str(info.value)


def test_safe_loading_outlives_other_loads(tmp_path):
    path = str(tmp_path / 'epoch_3.pth')
    host_checkpoint(path)
    with torch.serialization.safe_globals([HistoryBuffer]):
        torch.load(path)
    assert torch.load(path)['meta'] == dict(epoch=3)
    assert 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ


def test_every_loader_of_mmengine_is_held_to_weights():
    loaders = CheckpointLoader._schemes
    assert {'', 'http://', 'https://'} <= set(loaders)
    assert all(hasattr(loader, '_weights_only') for loader in
               loaders.values())
    compat.allow_host_checkpoints()  # a second import changes nothing
    assert CheckpointLoader._schemes == loaders


def test_loader_that_asks_for_full_unpickling_does_not_get_it(
        tmp_path, monkeypatch):
    path, mark = str(tmp_path / 'bomb.pth'), tmp_path / 'mark'
    torch.save(Bomb(mark), path)
    # what must not be got by asking for it
    loader = compat._weights_only(
        lambda name, _: torch.load(name, weights_only=False))
    for forbid in (False, True):  # torch's own way back to full unpickling
        if forbid:
            monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
        with pytest.raises(ValueError, match='carries pickled code'):
            loader(path, 'cpu')
    assert not mark.exists()
    assert os.environ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'] == '1'


@pytest.mark.parametrize('missing', ['mmpretrain', 'mmengine', 'mmcv'])
def test_import_without_a_host_gives_the_two_commands(missing):
    done = run(f"""
        import importlib.util as util
        find = util.find_spec
        util.find_spec = lambda n, *a: None if n == {missing!r} else find(n)
        import gap_plugin""")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('ImportError: gap_plugin needs MMPretrain')
    assert missing in last and '[openmmlab]' in last and '[onedl]' in last


def test_version_out_of_bounds_is_warned_of(monkeypatch):
    monkeypatch.setitem(compat._TESTED, 'timm', ('9.0', '9.1'))
    with pytest.warns(UserWarning, match='timm.*timm>=9.0,<9.1'):
        compat.check_host()


def test_tested_versions_are_quiet(recwarn):
    compat.check_host()
    assert not [w for w in recwarn if 'tested' in str(w.message)]


def test_import_neither_writes_files_nor_opens_sockets(tmp_path):
    done = run(f"""
        import sys
        seen = []
        import mmpretrain.models, timm
        def watch(event, args):
            if event == 'socket.connect':
                seen.append((event, args))
            if event == 'open' and isinstance(args[1], str) and any(
                    c in args[1] for c in 'wax+') and not str(
                        args[0]).endswith(('.pyc', 'null')) and not (
                        '.pyc.' in str(args[0])):
                seen.append((event, args))
        sys.addaudithook(watch)
        import gap_plugin
        print(seen, file=open({str(tmp_path / 'seen')!r}, 'w'))""")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / 'seen').read_text().strip()
    assert lines.count("('open'") <= 1, lines  # the report itself
    assert 'socket' not in lines


def test_import_works_without_the_test_suite_around_it(tmp_path):
    done = run('import gap_plugin; print(gap_plugin.__version__)')
    assert done.stdout.strip() == gap_plugin_version()


def gap_plugin_version():
    import gap_plugin
    return gap_plugin.__version__
