"""What a person reads: a header, a line an epoch, the result."""

import argparse
import logging
import os
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from mmengine.dist import is_distributed, is_main_process
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from rich.console import Console
from torch import nn

#: How a line of MMEngine's logger begins.
_LOGGED = re.compile(r'\d\d/\d\d \d\d:\d\d:\d\d - \S+ - (?:\x1b\[[\d;]*m)*'
                     r'(DEBUG|INFO|WARNING|ERROR|CRITICAL)(?:\x1b\[[\d;]*m)*'
                     r' - ')


class _WithoutLog:
    """Standard output without what MMEngine logs.

    Its log files have that, too. What it warns of is said as a warning; all
    else that is printed goes on.

    Args:
        stream: Standard output.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._blank = True  # ahead of a line: after one that was left out

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        logged = _LOGGED.match(text)
        if logged is None:
            if not _IDLE.match(text) and not (self._blank and text == '\n'):
                self._stream.write(text)
                self._blank = False
                return len(text)
        elif logged[1] not in ('DEBUG', 'INFO'):
            warn(text[logged.end():])
        self._blank = True
        return len(text)


#: Warnings that a user can do nothing about.
_IDLE = re.compile(
    r'Fail to import|.?FileClient|.?HardDiskBackend|Palette images|'
    r'Corrupt EXIF|Importing from timm|.*deprecated|.*will be removed|'
    r'Overwriting .* in registry|Unable to import dependency|'
    r'init_weights of|Loads checkpoint by|Setting \w+_NUM_THREADS|'
    r'.*for pillow backend|.* instance named of|'
    r'.* is skipped since its requires_grad=False')

#: What a terminal would obey, were it in the name of a folder.
_CONTROL = re.compile(r'[\x00-\x08\x0b-\x1f\x7f-\x9f]')

_console = Console(highlight=False, markup=False, emoji=False,
                   soft_wrap=True)
_warned: set[str] = set()


@contextmanager
def opened(verbose: bool) -> Iterator[None]:
    """Keep MMEngine's log and idle warnings off the console.

    Args:
        verbose: Whether MMEngine's log is shown.
    """
    _warned.clear()
    _console.file = sys.stdout
    if verbose:
        yield
        return
    shown = warnings.showwarning
    warnings.showwarning = _show_warning
    try:
        with redirect_stdout(_WithoutLog(sys.stdout)):
            yield
    finally:
        warnings.showwarning = shown
        _console.file = None


def first() -> bool:
    """Whether this process speaks and writes for all of a run."""
    if is_distributed():
        return is_main_process()
    for name in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'):
        if name in os.environ:
            return os.environ[name] == '0'
    return True


def say(text: str, style: str | None = None) -> None:
    """Print a line, once for all processes of a run."""
    if first():
        encoding = getattr(_console.file, 'encoding', None) or 'utf-8'
        # a pipe of Windows has no sign for every name
        text = text.encode(encoding, 'backslashreplace').decode(encoding)
        text = _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)
        plain = os.environ.get('NO_COLOR')
        _console.print(text, style=None if plain else style)


def note(text: str) -> None:
    """Print a line that is no part of a result, to standard error."""
    if first():
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print a warning, once."""
    text = ' '.join(text.split())
    if text not in _warned and not _IDLE.match(text):
        _warned.add(text)
        note(f'warning: {text}')


def _show_warning(message: Any, *args: Any, **kwargs: Any) -> None:
    warn(str(message))


def log_error() -> Path | None:
    """Write the current error to the log of the run, in full.

    Returns:
        The file; None if there is none yet.
    """
    if not MMLogger._instance_dict:
        return None
    logger = MMLogger.get_current_instance()
    files = [handler for handler in logger.handlers
             if isinstance(handler, logging.FileHandler)]
    for handler in files:
        handler.emit(logging.LogRecord(
            logger.name, logging.ERROR, '', 0, traceback.format_exc(), (),
            None))
    return Path(files[0].baseFilename) if files else None


def log_file(runner: Runner) -> str:
    """Where all that MMEngine writes is kept."""
    return short(Path(runner.log_dir) / f'{runner.timestamp}.log')


def header(rows: dict[str, str]) -> None:
    """Print what a run is about, aligned."""
    for key, value in rows.items():
        say(f'{key:8} {value}')


def result(metrics: dict[str, Any], key: str | None, file: Any,
           following: str | None = None) -> None:
    """Print how a command ended: one metric, its file, what comes next.

    Args:
        metrics: All that was measured.
        key: The one that counts; None for the first.
        file: What was written.
        following: A command to type next.
    """
    if metrics:
        key = key if key in metrics else next(iter(metrics))
        others = {k: v for k, v in metrics.items() if k != key}
        for other, value in others.items():
            say(f'{other} {number(value)}')
        say(f'{key} {number(metrics[key])}', 'bold')
    if file is not None:
        say(short(file))
    if following:
        say(following)


#: What of a config matters in training alone.
_TRAINING = ('train_', 'val_', 'optim_wrapper', 'param_scheduler',
             'auto_scale_lr', 'default_hooks', 'custom_hooks')


def typed(args: argparse.Namespace, *flags: str,
          training: bool = False) -> str:
    """Flags of a command, as they have to be typed for the next one.

    Args:
        args: What was given.
        *flags: Those that the next command needs, too, such as
            ``'work_dir'``; ``--cfg-options`` always.
        training: Whether the next command trains, too.
    """
    words = []
    for name in flags:
        value = getattr(args, name, None)
        if value:
            words.append(f'--{name.replace("_", "-")}')
            if value is not True:
                words.append(shlex.quote(str(value)))
    options = {key: value for key, value in (args.cfg_options or {}).items()
               if training or not key.startswith(_TRAINING)}
    if options:
        words.append('--cfg-options')
        for key, value in options.items():
            text = str(value)
            if not isinstance(value, str):
                text = text.replace(' ', '')
            words.append(shlex.quote(f'{key}={text}'))
    return ''.join(f' {word}' for word in words)


def short(path: Any) -> str:
    """A path as it is typed here: relative, where it lies below."""
    if '://' in str(path):
        return str(path)
    try:
        return str(Path(path).resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def number(value: Any) -> str:
    """A figure as people write it."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return str(value)
    return f'{value:.2f}' if abs(value) >= 1 or value == 0 else f'{value:.4g}'


def describe_model(model: nn.Module, cfg: Any,
                   trained: bool = False) -> dict[str, str]:
    """Header lines of a model and its device.

    Args:
        model: Built.
        cfg: What from.
        trained: Whether the parameters that are trained are counted.
    """
    backbone = cfg.model.get('backbone') or {}
    if not backbone and 'module' in cfg.model:  # test-time augmentation
        backbone = cfg.model.module.get('backbone') or {}
    name = backbone.get('model_name') or backbone.get('type') or (
        cfg.model.type)
    parameters = list(model.parameters())
    count = sum(p.numel() for p in parameters)
    text = f'{name}, {count / 1e6:.2f} M parameters'
    if trained:
        count = sum(p.numel() for p in parameters if p.requires_grad)
        text += f', {count / 1e6:.2f} M of them trained'
    device = parameters[0].device if parameters else 'cpu'
    return dict(network=text, device=str(device))


def describe_data(dataset: Any, batch: int | None = None) -> str:
    """A header line of a dataset."""
    classes = getattr(dataset, 'metainfo', {}).get('classes')
    parts = [f'{len(dataset)} images']
    if classes:
        parts.append(f'{len(classes)} classes')
    if batch:
        parts.append(f'batches of {batch}')
    return ', '.join(parts)
