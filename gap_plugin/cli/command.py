"""How a command starts and ends: errors in one line, nothing left behind."""

import argparse
import gc
import logging
import multiprocessing
import os
import random
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.dist import is_distributed
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

from ..messages import first_line
from . import console

#: Errors that say by themselves what is wrong.
_PLAIN = (ImportError, OSError, ValueError)


def command(flags: Callable[[], argparse.ArgumentParser],
            run: Callable[[argparse.Namespace], int | None]) -> Callable:
    """The ``main`` of a command.

    Args:
        flags: Makes its parser.
        run: Does it, and gives the exit status, None for 0.

    Returns:
        ``main(argv=None, prog=None)``: the command line, that of the process
        by default, and the name under which it was called.
    """

    def main(argv: list[str] | None = None, prog: str | None = None) -> None:
        parser = flags()
        parser.prog = prog or parser.prog
        parser.add_argument('--verbose', action='store_true', help='all that '
                            'MMEngine writes, and where an error came from')
        args = parser.parse_args(argv)
        status = None
        with _as_found(), console.opened(args.verbose):
            try:
                status = run(args)
            except KeyboardInterrupt:
                status = f'{parser.prog}: stopped'
            except Exception as error:  # parts raise errors of all kinds
                if args.verbose:
                    raise
                logged = console.log_error()
                told = one_line(error, parser)
                plain = isinstance(error, _PLAIN) and (
                    first_line(error) == str(error).strip())
                if logged and not plain:
                    told = f'{told} (in full: {console.short(logged)})'
                status = f'{parser.prog}: error: {told}'
        if status:
            sys.exit(status)

    main.__doc__ = run.__doc__
    return main


def one_line(error: BaseException, parser: argparse.ArgumentParser) -> str:
    """An error in one line, with flags where it names arguments."""
    text = first_line(error)
    if text == 'need at least one array to concatenate':
        # what MMEngine says where it packs the samples of a dataset
        text = ('a dataset of the config has no images: check its data_root '
                'and ann_file.')
    if text == 'None is not a callable object':
        # where MMEngine looks for the arguments of an optimizer
        text = ('no optimizer is registered by that name: correct '
                'optim_wrapper.optimizer.type, or install what has it.')
    if isinstance(error, KeyError) and error.args:
        text = str(error.args[0]).strip().splitlines()[0].split('. ')[0]
    # MMEngine wraps what a part raises in the place where it stands
    text = re.sub(r' in <\S+ object at 0x[0-9a-f]+>$', '', text)
    text = re.sub(r'^class `(\w+)` in \S+: ', r'\1: ', text)
    text = re.sub(r"(\w+)\.__init__\(\) got an unexpected keyword argument "
                  r"('\w+')", r'\1 has no argument \2', text)
    if (not isinstance(error, (*_PLAIN, RuntimeError))
            and ' has no argument ' not in text):
        text = f'{text} ({type(error).__name__})'
    # what stands in quotes is a name, and stays as it is
    parts = re.split(r"""('[^']*'|"[^"]*")""", text)
    parts[::2] = [_with_flags(part, parser) for part in parts[::2]]
    return ''.join(parts)


def _with_flags(text: str, parser: argparse.ArgumentParser) -> str:
    """A message whose arguments are named as the flags that set them."""
    for action in parser._actions:
        if action.option_strings:
            flag = max(action.option_strings, key=len)
            set_to = False if action.const is False else True
            text = re.sub(rf'\b{action.dest}={set_to}\b', flag, text)
            text = re.sub(rf'(?<![\w./\\-]){action.dest}=', f'{flag} ', text)
            if '_' in action.dest:
                text = re.sub(rf'(?<![\w./\\-]){action.dest}(?![\w=./\\])',
                              flag, text)
    return text


@contextmanager
def _as_found() -> Iterator[None]:
    """Leave the process as it was: for those who call a command from code."""
    managed = (MMLogger, MessageHub, Visualizer, DefaultScope)
    instances = [dict(kind._instance_dict) for kind in managed]
    environment = dict(os.environ)
    argv, path = list(sys.argv), list(sys.path)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    threads = torch.get_num_threads(), cv2.getNumThreads()
    cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    deterministic = torch.are_deterministic_algorithms_enabled()
    start = multiprocessing.get_start_method(allow_none=True)
    named = hasattr(np, 'in1d')
    grouped = is_distributed()
    handlers = list(logging.root.handlers)
    level, disabled = logging.root.level, logging.root.manager.disable
    try:
        with warnings.catch_warnings():
            yield
    finally:
        if is_distributed() and not grouped:
            # or a thread of it may abort the process as that ends; the
            # model is in a cycle, and keeps the group until it is collected
            torch.distributed.destroy_process_group()
            gc.collect()
        for kind, known in zip(managed, instances, strict=True):
            for name, instance in list(kind._instance_dict.items()):
                if name not in known:
                    _close(instance)
            kind._instance_dict.clear()
            kind._instance_dict.update(known)
        for name in {*os.environ, *environment}:
            if name not in environment:
                del os.environ[name]
            elif os.environ.get(name) != environment[name]:
                os.environ[name] = environment[name]
        sys.argv[:], sys.path[:] = argv, path
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        torch.backends.cudnn.benchmark = cudnn[0]
        torch.backends.cudnn.deterministic = cudnn[1]
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
        multiprocessing.set_start_method(start, force=True)
        if not named and hasattr(np, 'in1d'):
            del np.in1d
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
        logging.disable(disabled)


def _close(instance: Any) -> None:
    """Close the files of a logger or a visualizer."""
    for handler in getattr(instance, 'handlers', ()):
        handler.close()
    if isinstance(instance, Visualizer):
        instance.close()
