"""A run, as a person follows it: a bar for each epoch, a line at its end."""

import logging
import time
from contextlib import ExitStack
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..progress import bar
from .console import number, say, warn


class _Warnings(logging.Handler):
    """Says what is logged as a warning."""

    def emit(self, record: logging.LogRecord) -> None:
        warn(record.getMessage())


class ConsoleHook(Hook):
    """A bar for each epoch and a line at its end.

    Args:
        lines: Whether epochs have lines.
    """

    priority = 'VERY_LOW'

    def __init__(self, lines: bool = True) -> None:
        self.lines = lines
        self.metrics: dict[str, Any] = {}
        self._bars = ExitStack()
        self._advance: Any = None
        self._pending: str | None = None
        self._start = 0.

    def before_run(self, runner: Runner) -> None:
        """Say what MMEngine logs as a warning."""
        if not any(isinstance(h, _Warnings) for h in runner.logger.handlers):
            runner.logger.addHandler(_Warnings(logging.WARNING))

    def _open(self, loader: Any, what: str) -> None:
        self._bars.close()
        self._advance = self._bars.enter_context(
            bar(len(loader), what, 'batches', is_main_process()))

    def before_train_epoch(self, runner: Runner) -> None:
        """Open the bar of an epoch."""
        self._tell()
        self._start = time.perf_counter()
        self._open(runner.train_dataloader,
                   f'epoch {runner.epoch + 1}/{runner.max_epochs}')

    def before_val_epoch(self, runner: Runner) -> None:
        """Open the bar of a validation."""
        self._note(runner)
        self._open(runner.val_dataloader, 'validation')

    def before_test_epoch(self, runner: Runner) -> None:
        """Open the bar of a test."""
        self._open(runner.test_dataloader, 'test')

    def _step(self, *args: Any, **kwargs: Any) -> None:
        if self._advance is not None:
            self._advance(1)

    after_train_iter = after_val_iter = after_test_iter = _step

    def after_train_epoch(self, runner: Runner) -> None:
        """Note an epoch, which may be validated next."""
        self._note(runner, 1)

    def _note(self, runner: Runner, ahead: int = 0) -> None:
        """Keep what there is to say of the training up to now."""
        self._bars.close()
        self._advance = None
        if self._pending or not hasattr(runner.train_loop, 'max_iters'):
            return
        scalars = runner.message_hub.log_scalars
        parts = [f'epoch {runner.epoch + ahead}/{runner.max_epochs}'
                 if runner.max_epochs and runner.max_epochs > 0 else
                 f'iteration {runner.iter}/{runner.max_iters}']
        for key in ('train/loss', 'train/lr'):
            if key in scalars:
                value = (scalars[key].mean(len(runner.train_dataloader))
                         if key == 'train/loss' else scalars[key].current())
                parts.append(f'{key.removeprefix("train/")} {value:.4g}')
        parts.append(f'{time.perf_counter() - self._start:.1f} s')
        self._pending = '  '.join(parts)

    def _tell(self, metrics: dict[str, Any] | None = None) -> None:
        if self._pending and self.lines:
            told = ''.join(f'  {key} {number(value)}'
                           for key, value in (metrics or {}).items())
            say(f'{self._pending}{told}')
        self._pending = None

    def after_val_epoch(self, runner: Runner,
                        metrics: dict[str, Any] | None = None) -> None:
        """Print the line of an epoch."""
        self._bars.close()
        self._advance = None
        self.metrics = dict(metrics or {})
        self._tell(self.metrics)

    def after_test_epoch(self, runner: Runner,
                         metrics: dict[str, Any] | None = None) -> None:
        """Keep the metrics of a test."""
        self.metrics = dict(metrics or {})

    def after_train(self, runner: Runner) -> None:
        """Print what is left."""
        self._tell()

    def after_run(self, runner: Runner) -> None:
        """Take the bar away."""
        self._bars.close()
