"""Checkpoints that a kill at any moment leaves whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from operator import length_hint
from pathlib import Path
from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.dist import barrier, is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import BaseLoop, Runner
from mmpretrain.registry import HOOKS

from ..files import TEMPORARY, put_in_place, remove_whole
from .building import check_classes


def check_batches(runner: Runner) -> None:
    """Refuse training data that give no whole batch.

    Raises:
        ValueError: With the number of images and the size of a batch.
    """
    loader = runner.train_dataloader
    if isinstance(getattr(loader, 'sampler', None), InfiniteSampler):
        return  # which fills every batch, whatever its length says
    if not length_hint(loader, 1):  # data without a length pass
        size = getattr(loader.batch_sampler, 'batch_size', None)
        raise ValueError(
            f'{len(loader.dataset)} training images give no batch of {size} '
            'with drop_last: set a smaller train_dataloader.batch_size.')


@HOOKS.register_module()
class ClassNamesHook(Hook):
    """Refuses a checkpoint of other classes than those of the data.

    In a test, a validation, and a training that is resumed; one that starts
    from a checkpoint may have other classes.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the names that the checkpoint and the datasets have.

        Raises:
            ValueError: If they differ.
        """
        loops = {split: getattr(runner, f'_{split}_loop')
                 for split in ('train', 'val', 'test')}
        loops = {split: loop for split, loop in loops.items()
                 if isinstance(loop, BaseLoop)}  # which are built
        if 'train' in loops and not runner._resume:
            return
        name = runner._load_from or runner.work_dir
        lacking = ', '.join(sorted(
            {'meta', 'message_hub'} - checkpoint.keys()))
        if runner._resume and lacking:
            raise ValueError(
                f'checkpoint {str(name)!r} is none that a run goes on from: '
                f'it lacks {lacking}; to start from its weights, give it as '
                'load_from in the config, without resume.')
        # runners initialise what they resume, and FlexibleRunner what it
        # tests, too: see checked_loading.py, where nothing may be left to
        # chance then
        model = runner.model
        while hasattr(model, 'module'):
            model = model.module
        model.is_init = False
        for split, loop in loops.items():
            check_classes(checkpoint, getattr(
                loop.dataloader.dataset, 'metainfo', {}).get('classes'),
                name, split)


@HOOKS.register_module()
class AtomicCheckpointHook(ClassNamesHook, CheckpointHook):
    """A ``CheckpointHook`` whose files are whole or not there.

    MMEngine's own writes over a checkpoint in place (with ``save_best``, over
    the one that ``resume=True`` takes) and removes old ones ahead of
    writing the new one. Here a checkpoint is written beside its place and
    renamed, and what is outdated is removed afterwards. On object storage,
    which does so by itself, checkpoints are MMEngine's. A sharded one is a
    folder: saved again, its former state has another name for a moment.

    With ``FlexibleRunner``, whose re-saved checkpoints say one epoch too
    many, so that a resumed run leaves an epoch out, they say the right one.

    A run whose images give no batch is refused: MMEngine takes its model,
    untrained, for the best one. A checkpoint that is loaded is checked as by
    :class:`ClassNamesHook`.

    Takes the arguments of MMEngine's ``CheckpointHook``.
    """

    def before_train(self, runner: Runner) -> None:
        """As MMEngine's, for a run that has something to train on."""
        check_batches(runner)
        super().before_train(runner)

    def _save_checkpoint_with_step(self, runner: Runner, step: int,
                                   meta: dict[str, int]) -> None:
        with self._whole(runner) as careful:
            super()._save_checkpoint_with_step(careful, step, meta)

    def _save_best_checkpoint(self, runner: Runner,
                              metrics: dict[str, Any]) -> None:
        with self._whole(runner) as careful:
            super()._save_best_checkpoint(careful, metrics)

    @contextmanager
    def _whole(self, runner: Any) -> Iterator[Any]:
        """A runner that renames into place; removals wait for the end."""
        backend = self.file_backend
        if not isinstance(backend, LocalBackend):  # or one of these already
            yield runner
            return
        self.file_backend = later = _RemovingLater(backend)
        careful = _Renaming(runner)
        # where MMEngine may write over ``last_checkpoint`` in place
        elsewhere = Path(runner.work_dir, 'last_checkpoint.partial')
        careful.work_dir = str(elsewhere)
        try:
            if is_main_process():
                remove_whole(elsewhere)  # of a run that was killed
                elsewhere.mkdir()
            yield careful
            if is_main_process():
                for last in elsewhere.iterdir():
                    put_in_place(last, Path(runner.work_dir, last.name))
        finally:
            if is_main_process():
                remove_whole(elsewhere)
            self.file_backend = backend
        for path, remove in later.outdated.items():
            if Path(path) not in careful.written:
                remove(path)


def clear_partial(folder: Path) -> None:
    """Remove what killed runs have left half-written among checkpoints.

    Args:
        folder: Where they are; no run may be at it.
    """
    for path in folder.iterdir():
        name = TEMPORARY.sub('', path.name)
        if name.endswith('.partial') or name != path.name and path.is_dir():
            remove_whole(path)


class _RemovingLater:
    """A file backend that notes what to remove."""

    def __init__(self, backend: LocalBackend) -> None:
        self._backend = backend
        self.outdated: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self.outdated[path] = self._backend.remove

    def rmtree(self, path: str) -> None:
        self.outdated[path] = self._backend.rmtree


class _Renaming:
    """A runner whose checkpoints are renamed into place."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.work_dir = runner.work_dir
        self.written: set[Path] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any,
                        **kwargs: Any) -> None:
        path = Path(out_dir) / filename
        partial = path.with_name(f'{filename}.partial')
        if is_main_process():
            remove_whole(partial)  # of a run that was killed
        barrier()
        try:
            with _at(self._runner, kwargs['meta']):
                self._runner.save_checkpoint(out_dir, partial.name, *args,
                                             **kwargs)
        except (OSError, RuntimeError):  # the disk is full
            if is_main_process():
                remove_whole(partial)
            raise
        barrier()  # of a sharded one, each process has written a part
        if is_main_process():
            put_in_place(partial, path)
        self.written.add(path)


@contextmanager
def _at(runner: Runner, meta: dict[str, int]) -> Iterator[None]:
    """Let checkpoints of a ``FlexibleRunner`` say where they were made.

    It writes over epoch and iteration that it is given.
    """
    strategy = getattr(runner, 'strategy', None)
    if strategy is None:
        yield
        return
    position, save = dict(meta), strategy.save_checkpoint

    def save_checkpoint(*args: Any, extra_ckpt: dict, **kwargs: Any) -> None:
        extra_ckpt['meta'].update(position)
        save(*args, extra_ckpt=extra_ckpt, **kwargs)

    strategy.save_checkpoint = save_checkpoint
    try:
        yield
    finally:
        del strategy.save_checkpoint
