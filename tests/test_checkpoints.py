"""Checkpoints: whole after a kill at any moment, and right ones."""

import os
import pickle
import signal
import tempfile
from pathlib import Path
from uuid import uuid4

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS

from commands import DIGITS, OURS, last_line, python
from errors import one_line
from gap_plugin.engine.checkpoint_hook import _Renaming, clear_partial
from kills import KILLS, fork, moments
from networks import full
from runs import HOOKS, data, model, runner


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


def train(work_dir, hook='AtomicCheckpointHook', **changes):
    """Two short epochs, of which each writes checkpoints."""
    hooks = dict(checkpoint=dict(HOOKS['checkpoint'], type=hook),
                 logger=dict(type='LoggerHook', interval=99))
    runner(work_dir, 2, default_hooks=hooks, log_level='ERROR',
           train_dataloader=data('train', 8, 8),
           val_dataloader=data('test', 8, 8), **changes).train()


def of_checkpoints(work_dir):
    return rf'{work_dir}/.*(\.pth|last_)'


@pytest.mark.parametrize('kills', [KILLS, full(99)])
def test_a_run_that_is_killed_goes_on(tmp_path, kills, monkeypatch):
    (tmp_path / 'tmp').mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'tmp'))
    whole = tmp_path / 'whole'
    status, count = fork(lambda: train(whole), of_checkpoints(whole))
    assert status == 0 and count > 12
    for moment in moments(count, kills):
        folder = tmp_path / str(moment)
        status, _ = fork(lambda f=folder: train(f), of_checkpoints(folder),
                         moment)
        assert status == -signal.SIGKILL
        pointer = folder / 'last_checkpoint'
        if pointer.exists():
            assert torch.load(pointer.read_text())['meta']['epoch'] in (1, 2)
        else:
            assert not list(folder.glob('epoch_2.pth'))
        for path in folder.glob('*.pth'):
            torch.load(path)
        if kills == KILLS or moment % 3 == 0:
            assert fork(lambda f=folder: train(f, resume=True),
                        of_checkpoints(folder))[0] == 0
            same(folder / 'epoch_2.pth', whole / 'epoch_2.pth')
            clear_partial(folder)
            assert not [path for path in folder.iterdir()
                        if path.suffix in ('.partial', '.tmp')]
    assert not list((tmp_path / 'tmp').iterdir())


def test_the_hosts_own_hook_loses_checkpoints(tmp_path):
    """Or this hook is not needed any more."""
    status, _ = fork(lambda: train(tmp_path, 'CheckpointHook'),
                     of_checkpoints(tmp_path), 1)
    assert status == -signal.SIGKILL
    # half of a checkpoint, under the name of a whole one
    with pytest.raises((EOFError, LookupError, RuntimeError, ValueError,
                        pickle.UnpicklingError)):
        torch.load(tmp_path / 'epoch_1.pth')


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
    # of a run that was killed
    for leftover in ('a.pth.partial', 'a.pth.0123abcd.tmp'):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / 'rank7.pth').touch()
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


@pytest.mark.parametrize('loop', [
    dict(by_epoch=True, max_epochs=1), dict(by_epoch=False, max_iters=2)])
def test_a_run_without_a_batch_is_refused_and_has_no_best_model(
        loop, tmp_path):
    with pytest.raises(ValueError, match='4 training images give no batch of '
                       '8 with drop_last'):
        runner(tmp_path, train_cfg=loop, default_hooks=HOOKS,
               train_dataloader=dict(data('train', 4), drop_last=True)
               ).train()
    assert not list(tmp_path.rglob('*.pth'))


def test_a_sampler_without_an_end_fills_its_batches(tmp_path):
    loader = dict(data('train', 4), drop_last=True,
                  sampler=dict(type='InfiniteSampler'))
    run = runner(tmp_path, train_cfg=dict(by_epoch=False, max_iters=2),
                 default_hooks=HOOKS, train_dataloader=loader)
    run.train()
    assert run.iter == 2


def named(names, split='test', count=8):
    """A dataloader of a few digits whose classes are called so."""
    loader = data(split, count, 8)
    loader['dataset']['metainfo'] = dict(classes=names)
    return loader


@pytest.mark.parametrize('kind', ['Runner', 'FlexibleRunner'])
def test_a_checkpoint_of_other_classes_is_not_tested(kind, tmp_path):
    """By the hook that configs of before have already."""
    train(tmp_path / 'w')
    path = str(tmp_path / 'w' / 'epoch_2.pth')
    given = Config(dict(test_cfg=dict(), test_evaluator=dict(type='Accuracy')))

    def tested(names, hook='AtomicCheckpointHook', **load):
        cfg = dict(
            model=model(), work_dir=str(tmp_path / 'w'), **given,
            test_dataloader=named(names), load_from=path, log_level='ERROR',
            default_hooks=dict(checkpoint=dict(type=hook)),
            experiment_name=f'{kind}{uuid4().hex}',
            default_scope='mmpretrain', env_cfg=dict(), **load)
        return RUNNERS.get(kind).from_cfg(cfg).test()

    tested(list('0123456789'))
    for names, told in ((list('0132456789'), "class 2 is '2' there and '3' "
                         'here'),
                        ([*'012345678', 'ix'], "'9' are there alone; 'ix' "
                         'are here alone')):
        with pytest.raises(ValueError, match='epoch_2.pth.* trained on other '
                           rf"classes than those of 'test', .*\({told}"):
            tested(names)
    tested(list('0132456789'), 'CheckpointHook')  # nobody asks
    saved = torch.load(path)
    del saved['meta']['dataset_meta']
    torch.save(saved, path)
    tested(list('0132456789'))  # nobody knows


def test_a_run_goes_on_with_its_own_classes_alone(tmp_path):
    train(tmp_path / 'w')
    other = dict(train_dataloader=named([*'abcdefghij'], 'train', 16),
                 load_from=str(tmp_path / 'w' / 'epoch_2.pth'),
                 default_hooks=HOOKS, log_level='ERROR')
    others = dict(other, val_dataloader=other['train_dataloader'])
    with pytest.raises(ValueError, match="classes than those of 'train'"):
        runner(tmp_path / 'w', 3, resume=True, **others).train()
    runner(tmp_path / 'x', 1, **others).train()  # starts from its weights


def test_a_run_does_not_go_on_with_another_head(tmp_path):
    train(tmp_path / 'w')
    other = model()
    other['head']['num_classes'] = 12
    with pytest.raises(ValueError, match='does not fit .*another shape: '
                       "'head.fc.weight'"):
        runner(tmp_path / 'w', 3, resume=True, model=other,
               default_hooks=HOOKS, log_level='ERROR').train()


def test_a_run_does_not_go_on_from_weights_alone(tmp_path):
    train(tmp_path / 'w')
    path = str(tmp_path / 'w' / 'epoch_2.pth')
    torch.save(dict(state_dict=weights(path), meta={}), path)
    with pytest.raises(ValueError, match=r'epoch_2.pth.* goes on from: it '
                       r'lacks message_hub; .* load_from') as info:
        runner(tmp_path / 'x', 3, resume=True, load_from=path,
               default_hooks=HOOKS, log_level='ERROR').train()
    one_line(info)


def test_the_command_asks_for_classes_whatever_the_hooks(tmp_path):
    train(tmp_path / 'w')
    text = python(OURS / 'test.py', DIGITS, tmp_path / 'w' / 'epoch_2.pth',
                  '--work-dir', tmp_path / 'w', '--cfg-options',
                  'default_hooks.checkpoint.type=CheckpointHook',
                  'model.backbone.model_name=test_resnet',
                  'test_dataloader.dataset.metainfo.classes='
                  '"[1,0,2,3,4,5,6,7,8,9]"', ok=False)
    assert "class 0 is '0' there and '1' here" in last_line(text)
