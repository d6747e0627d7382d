"""A run, as a person follows it: a bar for each epoch, a line at its end."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner

from ..progress import bar
from .console import header, number, say


class ConsoleHook(Hook):
    """A header, a bar for each epoch and a line at its end.

    Args:
        about: Gives the lines of the header, of a runner whose model is
            built; None for no header.
        lines: Whether epochs have lines.

    Attributes:
        metrics (dict): Of the last validation or test.
        best (dict): Of the epoch whose checkpoint is the best one, if that
            is one of this run and not of the one that it resumes.
        not_finite (list): Where in the training the loss was NaN or infinite.
    """

    priority = 'VERY_LOW'

    def __init__(self, about: Callable[[Runner], dict[str, str]] | None = None,
                 lines: bool = True) -> None:
        self.about, self.lines = about, lines
        self.metrics: dict[str, Any] = {}
        self.best: dict[str, Any] = {}
        self.not_finite: list[str] = []
        self._best_file: str | None = None
        self._bars = ExitStack()
        self._advance: Callable[[int], None] | None = None
        self._pending: str | None = None
        self._steps = 0  # since there was something to tell
        self._start = 0.

    def before_run(self, runner: Runner) -> None:
        """Print what the run is about."""
        if self.about is not None:
            header(self.about(runner))

    def before_train(self, runner: Runner) -> None:
        """Note the best file of the run that is resumed, if one is."""
        self._best_file = runner.message_hub.runtime_info.get('best_ckpt')

    def _open(self, total: int, what: str) -> None:
        self._close()
        self._advance = self._bars.enter_context(
            bar(total, what, 'batches', is_main_process()))

    def _close(self) -> None:
        self._bars.close()
        self._advance = None

    def _open_training(self, runner: Runner) -> None:
        """Open the bar of an epoch, or of the iterations up to the end."""
        self._start = time.perf_counter()
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            self._open(runner.max_iters - runner.iter, 'training')
        else:
            self._open(len(runner.train_dataloader),
                       f'epoch {runner.epoch + 1}/{runner.max_epochs}')

    def before_train_epoch(self, runner: Runner) -> None:
        """Open the bar of an epoch."""
        self._tell()
        self._open_training(runner)

    def before_val_epoch(self, runner: Runner) -> None:
        """Open the bar of a validation."""
        self._note(runner)
        self._open(len(runner.val_dataloader), 'validation')

    def before_test_epoch(self, runner: Runner) -> None:
        """Open the bar of a test."""
        self._open(len(runner.test_dataloader), 'test')

    def _step(self, *args: Any, **kwargs: Any) -> None:
        if self._advance is not None:
            self._advance(1)

    after_val_iter = after_test_iter = _step

    def after_train_iter(self, runner: Runner, *args: Any,
                         **kwargs: Any) -> None:
        """Move the bar, and note that there is something to tell."""
        self._steps += 1
        self._step()

    def after_train_epoch(self, runner: Runner) -> None:
        """Note an epoch, which may be validated next."""
        self._note(runner, 1)

    def _note(self, runner: Runner, ahead: int = 0) -> None:
        """Keep what there is to say of the training up to now."""
        self._close()
        if self._pending or not self._steps:
            return
        steps, self._steps = self._steps, 0
        by_iteration = isinstance(runner.train_loop, IterBasedTrainLoop)
        parts = [f'iteration {runner.iter}/{runner.max_iters}' if by_iteration
                 else f'epoch {runner.epoch + ahead}/{runner.max_epochs}']
        scalars = runner.message_hub.log_scalars
        if 'train/loss' in scalars:
            loss = scalars['train/loss'].mean(len(runner.train_dataloader))
            parts.append(f'loss {loss:.4g}')
            # MMEngine has read each of them off the GPU
            recent = scalars['train/loss'].data[0][-steps:]
            wrong = len(recent) - int(np.isfinite(recent).sum())
            if wrong:
                self.not_finite.append(parts[0])
                parts.append(f'NOT FINITE in {wrong} of {steps} steps')
        if 'train/lr' in scalars:
            parts.append(f'lr {scalars["train/lr"].current():.4g}')
        parts.append(f'{time.perf_counter() - self._start:.1f} s')
        self._pending = '  '.join(parts)

    def _tell(self) -> None:
        if self._pending and self.lines:
            told = ''.join(f'  {key} {number(value)}'
                           for key, value in self.metrics.items())
            say(f'{self._pending}{told}')
        self._pending = None

    def after_val_epoch(self, runner: Runner,
                        metrics: dict[str, Any] | None = None) -> None:
        """Print the line of an epoch."""
        self._close()
        self.metrics = dict(metrics or {})
        best = runner.message_hub.runtime_info.get('best_ckpt')
        if best != self._best_file:  # saved by the hook ahead of this one
            self._best_file, self.best = best, self.metrics
        self._tell()
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            self._open_training(runner)

    def after_test_epoch(self, runner: Runner,
                         metrics: dict[str, Any] | None = None) -> None:
        """Keep the metrics of a test."""
        self._close()
        self.metrics = dict(metrics or {})

    def after_train(self, runner: Runner) -> None:
        """Print what is left."""
        self._tell()

    def after_run(self, runner: Runner) -> None:
        """Take the bar away."""
        self._close()
