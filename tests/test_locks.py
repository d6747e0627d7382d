"""One run at a time in a folder, and no lock left by one that is gone."""

import errno
import multiprocessing
import os
import signal
import time
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.config import Config

from commands import DIGITS, last_line, main
from errors import one_line
from gap_plugin import locks
from gap_plugin.cli.building import one_run
from gap_plugin.features import StoreWriter, remove
from gap_plugin.locks import alone
from gap_plugin.ranking import RankingOptions, rank


def _hold(lock, ready):
    with alone(lock, lock.parent):
        # a worker of a dataloader, which outlives a run that is killed
        worker = multiprocessing.get_context('fork').Process(
            target=time.sleep, args=(600, ))
        worker.start()
        ready.send(worker.pid)
        time.sleep(600)


@contextmanager
def another_run(lock):
    """A process that holds a lock."""
    context = multiprocessing.get_context('fork')
    told, ready = context.Pipe()
    process = context.Process(target=_hold, args=(lock, ready))
    process.start()
    worker = told.recv()
    try:
        yield process
    finally:
        process.kill()
        process.join()
        os.kill(worker, signal.SIGKILL)


def test_another_run_is_kept_off_until_the_first_is_gone(tmp_path):
    lock = tmp_path / 'new' / '.lock'
    with another_run(lock) as process:
        for _ in range(2):  # a refusal takes nothing away
            with pytest.raises(ValueError, match='in use by') as error:
                with alone(lock, tmp_path):
                    pass
            assert f'{str(tmp_path)!r} is in use by another run (process ' \
                f'{process.pid} on ' in one_line(error)
        process.kill()
        process.join()
        assert lock.exists()
        with alone(lock, tmp_path):
            assert str(os.getpid()) in lock.read_text()
        assert not lock.exists()


def test_a_lock_that_is_removed_in_between_is_made_again(tmp_path,
                                                         monkeypatch):
    lock, taken = tmp_path / '.lock', []

    def take(file, take=locks._take):
        taken.append(take(file))
        if len(taken) == 1:
            lock.unlink()  # by the run that has just ended
        return taken[-1]

    monkeypatch.setattr(locks, '_take', take)
    with alone(lock, tmp_path):
        assert taken == [True, True] and lock.exists()


@pytest.mark.parametrize('number, where', [
    (errno.EACCES, 'open'), (errno.EROFS, 'open'), (errno.ENOLCK, 'lockf')])
def test_where_there_are_no_locks_nobody_is_kept_off(tmp_path, monkeypatch,
                                                     number, where):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    target = locks if where == 'open' else locks.fcntl
    monkeypatch.setattr(target, where, refuse, raising=False)
    with alone(tmp_path / '.lock', tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_windows_locks_a_byte_behind_the_text(tmp_path, monkeypatch):
    held = []

    def locking(handle, mode, count):
        assert os.lseek(handle, 0, os.SEEK_CUR) > 1000 and (mode, count) == (
            2, 1)
        if held:
            raise OSError(errno.EACCES, 'Permission denied')
        held.append(handle)

    monkeypatch.setattr(locks, 'fcntl', None)
    monkeypatch.setattr(locks, 'msvcrt', SimpleNamespace(
        locking=locking, LK_NBLCK=2), raising=False)
    lock = tmp_path / '.lock'
    with alone(lock, tmp_path):
        assert lock.read_text().startswith('process ')
        with pytest.raises(ValueError, match=f'process {os.getpid()} on'):
            with alone(lock, tmp_path):
                pass


def test_two_runs_of_a_command_do_not_share_a_work_dir(tmp_path,
                                                       monkeypatch):
    for command, *flags in (('train', ), ('probe', '--freeze')):
        folder = tmp_path / command
        with another_run(folder / f'.{command}.lock'):
            line = last_line(main(command, DIGITS, '--work-dir', folder,
                                  *flags, ok=False))
            assert f'{str(folder)!r} is in use by another run' in line
            # of the run itself, other processes
            with monkeypatch.context() as patch:
                patch.setenv('RANK', '1')
                with one_run(Config(dict(work_dir=str(folder))), command):
                    pass
        assert os.listdir(folder) == [f'.{command}.lock']


def test_training_clears_what_killed_runs_have_left(tmp_path):
    for name in ('epoch_1.pth.partial', 'epoch_1.pth.0123abcd.tmp'):
        (tmp_path / name / 'rank0').mkdir(parents=True)
    for name in ('epoch_2.pth.partial', 'a.pth.partial.0123abcd.tmp'):
        (tmp_path / name).touch()
    (tmp_path / 'linear_probe.pth.0123abcd.tmp').touch()  # another command's
    main('train', DIGITS, '--work-dir', tmp_path, '--cfg-options',
         'train_cfg.max_epochs=5', 'train_dataloader.batch_size=9999',
         ok=False)  # no batch of that size
    assert [path.name for path in tmp_path.iterdir() if path.suffix in (
        '.partial', '.tmp', '.lock')] == ['linear_probe.pth.0123abcd.tmp']


def test_two_rankings_do_not_share_a_folder(tmp_path):
    with another_run(tmp_path / '.rank.lock'), pytest.raises(
            ValueError, match='in use by another run'):
        next(rank(['test_vit'], RankingOptions(tmp_path, str(DIGITS))))


def test_two_runs_do_not_write_one_store(tmp_path):
    def prepare():
        writer = StoreWriter(tmp_path / 'train', 4, 2, 'float32', 4)
        writer.prepare(np.arange(4), list('abcd'), {})
        return writer

    prepare()  # cut off
    with another_run(tmp_path / '.train.lock'):
        with pytest.raises(ValueError, match="train' is in use by another"):
            prepare()
        with pytest.raises(ValueError, match="train' is in use by another"):
            remove(tmp_path / 'train')
    writer = prepare()
    writer.write(0, np.ones((4, 2)))
    writer.finish({})
    assert os.listdir(tmp_path) == ['train']
