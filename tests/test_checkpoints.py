"""Checkpoints: whole after a kill at any moment, and right ones."""

import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS

from gap_plugin.engine.checkpoint_hook import _Renaming
from runs import HOOKS, data, model, runner

TESTS = Path(__file__).parent
ROOT = TESTS.parent
DIGITS = ROOT / 'configs' / 'digits' / 'test_nfnet.py'


def weights(path):
    return torch.load(path)['state_dict']


def same(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], msg=name)


def test_files_are_those_of_mmengine(tmp_path):
    """Names, what is kept, and what a checkpoint holds."""
    stock = dict(checkpoint=dict(HOOKS['checkpoint'], type='CheckpointHook'))
    for name, hooks in (('ours', HOOKS), ('stock', stock)):
        runner(tmp_path / name, 3, default_hooks=hooks).train()
    ours, theirs = (
        sorted(p.name for p in (tmp_path / name).iterdir()
               if p.is_file() and p.suffix != '.py')
        for name in ('ours', 'stock'))
    assert ours == theirs and 'epoch_3.pth' in ours
    for name in ours:
        if name.endswith('.pth'):
            same(tmp_path / 'ours' / name, tmp_path / 'stock' / name)
    a, b = (torch.load(tmp_path / n / 'epoch_3.pth')
            for n in ('ours', 'stock'))
    assert a.keys() == b.keys()
    assert a['meta']['epoch'] == b['meta']['epoch'] == 3
    assert a['meta']['iter'] == b['meta']['iter']
    last = (tmp_path / 'ours' / 'last_checkpoint').read_text()
    assert last == str(tmp_path / 'ours' / 'epoch_3.pth')
    assert not list((tmp_path / 'ours').rglob('*.partial'))


KILLED = """
    import os, sys, warnings
    warnings.simplefilter('ignore')
    import torch
    torch.set_num_threads(1)
    import gap_plugin
    from runs import HOOKS, data, model, runner

    hook, folder, every = sys.argv[1:]
    hooks = dict(checkpoint=dict(HOOKS['checkpoint'], type=hook))

    def train(work_dir, resume=False):
        runner(work_dir, 2, default_hooks=dict(
            hooks, logger=dict(type='LoggerHook', interval=99)),
            model=model('test_resnet'), resume=resume, log_level='ERROR',
            train_dataloader=data('train', 8, 8),
            val_dataloader=data('test', 8, 8)).train()

    def kill_at(moment, work_dir):
        '''Die ahead of the n-th change of a file of the checkpoints.'''
        count = 0
        def watch(event, args):
            nonlocal count
            path = str(args[0]) if args else ''
            if event == 'open' and not set(str(args[1])) & set('wax+'):
                return
            if event not in ('open', 'os.rename', 'os.remove'):
                return
            if work_dir in path and ('.pth' in path or 'last_' in path):
                count += 1
                if count == moment:
                    if event == 'open':  # and half of it is written
                        with os.fdopen(os.open(path, 577, 0o666), 'w') as f:
                            f.write('half')
                    os._exit(9)
        sys.addaudithook(watch)

    moment = 1
    while True:
        work_dir = f'{folder}/{moment}'
        pid = os.fork()
        if not pid:
            kill_at(moment, work_dir)
            train(work_dir)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(moment, code, flush=True)
        if code == 0:
            break
        pointer = f'{work_dir}/last_checkpoint'
        if os.path.exists(pointer):
            last = open(pointer).read()
            print('last', last, torch.load(last)['meta']['epoch'])
        elif any('epoch_2' in name for name in os.listdir(work_dir)):
            raise RuntimeError('no last_checkpoint')
        for name in os.listdir(work_dir):
            if name.endswith('.pth'):
                torch.load(f'{work_dir}/{name}')
        if moment % int(every) == 0:
            pid = os.fork()
            if not pid:
                train(work_dir, resume=True)
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            print('resumed', moment, flush=True)
        moment += 1
"""


def killed(hook, folder, every):
    """Kill a run at each moment; go on from every so many."""
    return subprocess.run(
        [sys.executable, '-c', textwrap.dedent(KILLED), hook, str(folder),
         str(every)], capture_output=True, text=True, check=False,
        env={**os.environ, 'PYTHONPATH': str(TESTS), 'OMP_NUM_THREADS': '1'})


def test_a_run_that_is_killed_goes_on(tmp_path):
    done = killed('AtomicCheckpointHook', tmp_path, 3)
    assert done.returncode == 0, done.stderr[-3000:]
    moments = re.findall(r'^(\d+) \d+$', done.stdout, re.M)
    resumed = re.findall(r'^resumed (\d+)$', done.stdout, re.M)
    assert len(moments) > 12 and len(resumed) > 3
    whole = tmp_path / moments[-1] / 'epoch_2.pth'
    for moment in resumed:
        same(tmp_path / moment / 'epoch_2.pth', whole)


def test_the_hosts_own_hook_loses_checkpoints(tmp_path):
    """Or this hook is not needed any more."""
    done = killed('CheckpointHook', tmp_path, 99)
    assert done.returncode != 0
    # half of a checkpoint, under the name of a whole one
    assert re.search(r'in load$', done.stderr, re.M), done.stderr[-2000:]
    assert '1 9' in done.stdout.splitlines()


def test_a_flexible_run_goes_on_at_the_right_epoch(tmp_path):
    def flexible(name, epochs, **changes):
        cfg = dict(
            runner_type='FlexibleRunner', model=model(),
            work_dir=str(tmp_path / name), strategy=dict(
                type='SingleDeviceStrategy'),
            train_dataloader=data('train'), val_dataloader=data('test'),
            train_cfg=dict(by_epoch=True, max_epochs=epochs), val_cfg=dict(),
            val_evaluator=dict(type='Accuracy'), default_hooks=HOOKS,
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05)),
            randomness=dict(seed=0), default_scope='mmpretrain',
            env_cfg=dict(), experiment_name=f'{name}{epochs}', **changes)
        run = RUNNERS.build(Config(cfg))
        assert type(run).__name__ == 'FlexibleRunner'
        return run

    flexible('whole', 4).train()
    flexible('parts', 2).train()
    last = torch.load(tmp_path / 'parts' / 'epoch_2.pth')
    assert last['meta']['epoch'] == 2
    flexible('parts', 4, resume=True).train()
    same(tmp_path / 'parts' / 'epoch_4.pth', tmp_path / 'whole' /
         'epoch_4.pth')


@pytest.mark.parametrize('best', [None, ['accuracy/top1', 'accuracy/top5']])
def test_outdated_checkpoints_are_removed(tmp_path, best):
    hooks = dict(checkpoint=dict(HOOKS['checkpoint'], save_best=best,
                                 max_keep_ckpts=2))
    runner(tmp_path, 4, default_hooks=hooks, val_evaluator=dict(
        type='Accuracy', topk=(1, 5))).train()
    assert {p.name for p in tmp_path.glob('epoch_*.pth')} == {
        'epoch_3.pth', 'epoch_4.pth'}
    for key in best or []:
        name = key.replace('/', '_')
        assert len(list(tmp_path.glob(f'best_{name}_*.pth'))) == 1


def test_a_sharded_checkpoint_is_a_folder_in_its_place(tmp_path):
    class Sharding:
        work_dir, strategy = str(tmp_path), None
        parts = 2

        def save_checkpoint(self, out_dir, filename, meta):
            for i in range(self.parts):
                folder = Path(out_dir) / filename
                folder.mkdir(exist_ok=True)
                (folder / f'rank{i}.pth').write_text(str(self.parts))
            if self.parts == 1:
                raise RuntimeError('inline_container: file write failed')

    run = Sharding()
    # of a run that was killed two days ago
    for leftover in ('a.pth.partial', 'a.pth.0123abcd.tmp'):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / 'rank7.pth').touch()
        os.utime(tmp_path / leftover, (time.time() - 2 * 86400, ) * 2)
    for _ in range(2):
        _Renaming(run).save_checkpoint(str(tmp_path), 'a.pth', meta={})
        assert sorted(os.listdir(tmp_path)) == ['a.pth']
        assert sorted(os.listdir(tmp_path / 'a.pth')) == [
            'rank0.pth', 'rank1.pth']
    run.parts = 1
    with pytest.raises(RuntimeError, match='write failed'):
        _Renaming(run).save_checkpoint(str(tmp_path), 'a.pth', meta={})
    assert sorted(os.listdir(tmp_path)) == ['a.pth']
    assert (tmp_path / 'a.pth' / 'rank0.pth').read_text() == '2'


def test_a_disk_that_is_full_leaves_what_was_there(tmp_path, monkeypatch):
    runner(tmp_path, 1, default_hooks=HOOKS).train()
    before = (tmp_path / 'epoch_1.pth').read_bytes()
    from mmengine.fileio import LocalBackend

    def put(_, content, path):
        Path(path).write_bytes(content[:100])
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(LocalBackend, 'put', put)
    with pytest.raises(OSError, match='No space left'):
        runner(tmp_path, 2, default_hooks=HOOKS, resume=True).train()
    assert (tmp_path / 'epoch_1.pth').read_bytes() == before
    assert not list(tmp_path.glob('*.partial'))
    assert (tmp_path / 'last_checkpoint').read_text().endswith('epoch_1.pth')
