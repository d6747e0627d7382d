"""What a file of weights holds, and where in it a network's weights are."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.models import clean_state_dict

from ..checkpoint_files import read_checkpoint_file
from ..messages import shorten

SUFFIXES = ('.safetensors', '.pth', '.pt', '.ckpt', '.tar', '.bin', '.npz')

#: The key under which our checkpoints say what image size they are for, in
#: the metadata that torch and MMEngine keep with a state dict.
IMAGE_SIZE = 'image_size'

#: Of places that fit equally, averaged weights are what is evaluated.
_FIRST = ('state_dict_ema', 'model_ema', 'teacher')
#: Where the weights are, if no name tells.
_USUAL = (*_FIRST, 'state_dict', 'model', 'model_state_dict', 'module')

#: Place -> the tensors there, for every dict of tensors in a file.
Nests = dict[str, dict[str, torch.Tensor]]


def read_weights(path: str) -> tuple[Nests | None, tuple[int, int] | None]:
    """Read a local file of weights.

    Nothing is unpickled but tensors and the classes that are on torch's
    allow-list.

    Args:
        path: A file with one of :data:`SUFFIXES`.

    Returns:
        Its dicts of tensors, None for an ``.npz``, whose JAX layout only the
        network itself can read; the image size that it is for, if it says.

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
        return None, None
    nests = nests_of(found)
    if not nests:
        raise ValueError(
            f'checkpoint_path {path!r} holds no tensors: give a state dict, '
            "or a checkpoint with a 'state_dict' or 'model' entry.")
    return nests, recorded_size(found)


def nests_of(found: Any, place: str = '', depth: int = 4) -> Nests:
    """Every dict of tensors in a checkpoint, by the keys that lead there."""
    nests: Nests = {}
    if not isinstance(found, dict) or not depth:
        return nests
    own = {key: value for key, value in found.items()
           if isinstance(key, str) and torch.is_tensor(value)}
    if own:
        nests[place] = own
    for key, value in found.items():
        if isinstance(key, str):
            nests |= nests_of(value, f'{place}{key}.', depth - 1)
    return nests


def recorded_size(found: Any) -> tuple[int, int] | None:
    """The image size that one of our checkpoints has been made for."""
    if not isinstance(found, dict):
        return None
    for state in (found, *found.values()):
        metadata = getattr(state, '_metadata', None)
        for entry in metadata.values() if isinstance(metadata, dict) else ():
            size = isinstance(entry, dict) and entry.get(IMAGE_SIZE)
            if size and len(size) == 2 and all(
                    isinstance(side, int) and side > 0 for side in size):
                return tuple(size)
    return None


class Place:
    """Where in a file a network's weights are.

    Found by what fits most of its weights, by name and shape: whatever
    stands ahead of the names, such as ``module.``, ``encoder.`` or
    ``teacher.backbone.``, is no matter.

    Args:
        nests: What the file holds.
        needed: The weights of the network, name -> shape.
        key: What the place is to begin with, if several fit.

    Attributes:
        path: Keys and prefix in one, such as ``'state_dict.encoder.'``.
        rivals: Other places that fit as well.
        tensors: Name -> tensor, in the network's names where they fit.

    Raises:
        ValueError: If there is no ``key``.
    """

    def __init__(self, nests: Nests, needed: Mapping,
                 key: str | None = None) -> None:
        if key is not None:
            below = f'{key}.'
            nests = _below(nests, below)
        named, shaped = Counter(), Counter()
        for nest, tensors in nests.items():
            for name, value in tensors.items():
                start = 0
                while True:
                    shape = needed.get(name[start:])
                    if shape is not None:
                        named[nest, name[:start]] += 1
                        shaped[nest, name[:start]] += shape == value.shape
                    start = name.find('.', start) + 1
                    if not start:
                        break
        order = sorted(named, key=lambda place: (
            -shaped[place], -named[place], *_rank(''.join(place))))
        self.rivals: list[str] = []
        # a few names are alike in any two networks
        if order and 4 * named[order[0]] >= len(needed):
            nest, prefix = best = order[0]
            self.path = nest + prefix
            self.tensors = {
                name[len(prefix):]: value
                for name, value in nests[nest].items()
                if name.startswith(prefix)}
            self.rivals = [
                ''.join(place) for place in order[1:]
                if (shaped[place], named[place]) == (shaped[best],
                                                     named[best])]
        else:
            self.path, self.tensors = usual(nests)
        self.is_named = bool(order)

    def __str__(self) -> str:
        """Which weights are taken, and how to take others."""
        told = f'the weights under {self.path!r} are taken'
        if self.rivals:
            other = self.rivals[0]
            told += (f'; those under {shorten(self.rivals)} fit as well, '
                     f'checkpoint_key={other.rstrip(".")!r} takes them')
        return told


def usual(nests: Nests) -> tuple[str, dict[str, torch.Tensor]]:
    """The weights of a file by its own names, without a wrapper's prefix."""
    place = min(nests, key=lambda nest: (
        next((i for i, name in enumerate(_USUAL)
              if nest.rstrip('.').endswith(name)), len(_USUAL)),
        -len(nests[nest])))
    return place, clean_state_dict(nests[place])


def _below(nests: Nests, key: str) -> Nests:
    found: Nests = {}
    for nest, tensors in nests.items():
        inner = {name: value for name, value in tensors.items()
                 if f'{nest}{name}'.startswith(key)}
        if inner:
            found[nest] = inner
    if not found:
        tops = {f'{nest}{name}'.split('.')[0]
                for nest, tensors in nests.items() for name in tensors}
        raise ValueError(f'checkpoint_key {key[:-1]!r}: there are no weights '
                         f'under it; the file has {shorten(sorted(tops))}.')
    return found


def _rank(path: str) -> tuple[bool, int]:
    words = path.split('.')
    return not any(word in _FIRST for word in words), len(words)
