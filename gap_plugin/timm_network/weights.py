"""Reading weight files, safely, and saying in one line what is wrong."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from timm.models import clean_state_dict

from ..checkpoint_files import read_checkpoint_file
from ..messages import shorten

SUFFIXES = ('.safetensors', '.pth', '.pt', '.tar', '.bin', '.npz')

#: In MMPretrain checkpoints the timm network stands under these names.
_HOST_PREFIXES = ('backbone.timm_model.', 'timm_model.')


def read_checkpoint(path: str) -> dict | None:
    """Read the timm network's tensors out of a local checkpoint.

    Files of timm, of MMPretrain (``TimmFeatureBackbone`` or ``TIMMBackbone``)
    and plain state dicts are accepted. Nothing is unpickled but tensors and
    the classes that are on torch's allow-list.

    Args:
        path: A ``.safetensors``, ``.pth``, ``.pt``, ``.tar``, ``.bin`` or
            ``.npz`` file.

    Returns:
        Name -> tensor in timm's names; None for an ``.npz``, whose
        JAX layout only the network itself can read.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has another suffix, is truncated, carries code, or
            holds no tensors.
    """
    suffix = Path(path).suffix.lower()
    if not Path(path).is_file():
        raise FileNotFoundError(
            f'checkpoint_path {path!r} is not a file: give the path of an '
            f'existing {", ".join(SUFFIXES)} file.')
    if suffix not in SUFFIXES:
        raise ValueError(
            f'checkpoint_path {path!r} ends in {suffix!r}; allowed are '
            f'{", ".join(SUFFIXES)}.')
    found = read_checkpoint_file(path, told=f'checkpoint_path {path!r}')
    if suffix == '.npz':
        return None
    found = found if isinstance(found, dict) else {}
    for key in ('state_dict_ema', 'model_ema', 'state_dict', 'model'):
        if isinstance(found.get(key), dict):
            found = found[key]
            break
    tensors = clean_state_dict({k: v for k, v in found.items() if
                                isinstance(k, str) and torch.is_tensor(v)})
    if not tensors:
        raise ValueError(
            f'checkpoint_path {path!r} holds no tensors: give a state dict, '
            "or a checkpoint with a 'state_dict' or 'model' entry.")
    for prefix in _HOST_PREFIXES:
        inner = {
            k[len(prefix):]: v
            for k, v in tensors.items() if k.startswith(prefix)
        }
        if inner:
            return inner
    return tensors


class KeyReport:
    """Which keys timm could not place while it loaded a state dict."""

    #: timm's own words, in ``timm.models._builder.load_pretrained``
    _PATTERN = re.compile(r'(Missing|Unexpected) keys \((.*?)\) ', re.DOTALL)

    def __init__(self) -> None:
        self.missing: list[str] = []
        self.unexpected: list[str] = []

    def read(self, message: str) -> None:
        """Note the names in a message of timm's log."""
        match = self._PATTERN.match(message)
        if match:
            names = match[2].split(', ')
            getattr(self, match[1].lower()).extend(names)

    def check(self, model: torch.nn.Module, path: str, name: str,
              unused: tuple[str, ...]) -> None:
        """Refuse a file that does not belong to the network.

        Args:
            model: The loaded network.
            path: The file, for the message.
            name: The network's name, for the message.
            unused: Prefixes of what was taken off the network after it was
                built, which a file may have or lack.

        Raises:
            ValueError: With counts and first names of the keys that do not
                match.
        """
        missing = [k for k in self.missing if not k.startswith(unused)]
        unexpected = [
            k for k in self.unexpected
            if not k.startswith(unused + _classifiers(model))
        ]
        if missing or unexpected:
            raise ValueError(
                f'checkpoint_path {path!r} does not fit {name!r}: '
                f'{_count(missing, "missing")}, '
                f'{_count(unexpected, "unexpected")}; give the weights of '
                'this network, or the model_name that they belong to.')


def _count(names: list[str], what: str) -> str:
    return f'{len(names)} {what} keys' + (
        f': {shorten(names)}' if names else '')


def _classifiers(model: torch.nn.Module) -> tuple[str, ...]:
    """Prefixes of the classifier's keys, which has been left out."""
    names = model.pretrained_cfg.get('classifier') or ()
    names = (names, ) if isinstance(names, str) else names
    return tuple(f'{name.split(".")[0]}.' for name in names)


@contextmanager
def key_report() -> Iterator[KeyReport]:
    """Collect what timm logs about keys that it could not place.

    timm's loader adapts and filters a state dict inside the function that
    builds the network; what then did not match is told to its log only.
    """
    report = KeyReport()
    logger = logging.getLogger('timm.models._builder')

    class Reader(logging.Handler):

        def emit(self, record: logging.LogRecord) -> None:
            report.read(record.getMessage())

    reader, level, propagate = Reader(), logger.level, logger.propagate
    logger.addHandler(reader)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # told in our own words, if it matters
    try:
        yield report
    finally:
        logger.removeHandler(reader)
        logger.setLevel(level)
        logger.propagate = propagate
