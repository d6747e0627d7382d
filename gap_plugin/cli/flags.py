"""Flags that several commands have."""

import argparse
import inspect
from typing import Any, NoReturn

from mmengine.config import DictAction


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        """As ``ArgumentParser``, without all flags ahead of it."""
        self.exit(2, f'{self.prog}: error: {message}; see --help.\n')


class _Options(DictAction):
    """Pairs KEY=VALUE; a single value, such as a path, keeps its spaces."""

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        """As MMEngine, which drops spaces, for lists."""
        if ' ' in val and not set(val) & set(',()[]'):
            return val.strip('\'"')
        return DictAction._parse_iterable(val)

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any,
                 values: list[str], option_string: str | None = None) -> None:
        """Read them, or say which one is none."""
        for value in values:  # each is added to those ahead of it
            try:
                super().__call__(parser, namespace, [value], option_string)
            except (AssertionError, RecursionError, ValueError):
                raise argparse.ArgumentError(
                    self, f'{value!r} is not KEY=VALUE, with lists as '
                    'key="[a,b]"') from None


def parser(description: str) -> argparse.ArgumentParser:
    """A parser whose help keeps the lines of a docstring."""
    return _Parser(
        description=inspect.cleandoc(description),
        formatter_class=argparse.RawDescriptionHelpFormatter)


def config_flag(parser: argparse.ArgumentParser) -> None:
    """Add the config, a file or one of those that come with the package."""
    parser.add_argument('config', help='config file, or the name of one that '
                        'comes with this package: digits/test_nfnet')


def options_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``."""
    parser.add_argument(
        '--cfg-options', nargs='+', action=_Options, metavar='KEY=VALUE',
        help='change the config: model.backbone.model_name=resnet18, '
        'lists as key="[a,b]" or key=a,b')


def run_flags(parser: argparse.ArgumentParser) -> None:
    """Add what all commands that run a config have in common."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints; '
                        'work_dirs/<name of the config> by default')
    parser.add_argument('--amp', action='store_true',
                        help='automatic mixed precision')
    parser.add_argument('--no-pin-memory', action='store_true',
                        help='no page-locked memory in the dataloaders')
    options_flag(parser)
    parser.add_argument('--launcher', default='none',
                        choices=['none', 'pytorch', 'slurm', 'mpi'],
                        help='what started this process')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0,
                        help='set by torch.distributed.launch')


def engine_flag(parser: argparse.ArgumentParser) -> None:
    """Add what runs the network over the images."""
    parser.add_argument(
        '--engine', default='auto', type=_engine, metavar='ENGINE',
        help='what runs the network over the images: torch, compile, '
        'onnxruntime, or auto, the fastest that gives the same (default)')


def _engine(name: str) -> str:
    from ..features.engines import ENGINES  # not for --help
    if name not in ENGINES:
        raise argparse.ArgumentTypeError(
            f'{name!r} must be one of {", ".join(ENGINES)}')
    return name


def store_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of what extracts features."""
    config_flag(parser)
    parser.add_argument('--checkpoint', help='weights of the model; those '
                        'that the config loads by default')
    parser.add_argument('--out', help='folder for the stores; '
                        '<work-dir>/features by default')
    engine_flag(parser)
    parser.add_argument('--dtype', choices=['float32', 'float16'],
                        default='float32', help='of the stored features')
    parser.add_argument('--skip-bad', action='store_true',
                        help='leave unreadable images out')
    parser.add_argument('--force', action='store_true',
                        help='replace a store that something else has made')
    parser.add_argument('--views', type=int, default=0, metavar='N',
                        help='N augmented passes of the training images by '
                        'their own pipeline, in addition')
    run_flags(parser)


def setting_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the settings that a probe is trained with."""
    parser.add_argument('--lr', type=float, nargs='+', metavar='RATE',
                        help='learning rates in place of that of the config; '
                        'one is chosen')
    parser.add_argument('--weight-decay', type=float, nargs='+',
                        metavar='DECAY', help='weight decays in place of '
                        'that of the config; one is chosen')
