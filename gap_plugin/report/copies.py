"""Images that stand in two splits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..datasets.checks import copies
from ..probing.neighbours import unit
from ..progress import bar

#: Cosine from which on pixels are compared. Equal pixels give equal
#: features, but for the rounding of another batch.
_ALIKE = 1 - 1e-4
#: Why a pair is the same.
SAME_FILE = 'the same file'
_FEW = 3  # neighbours whose pixels are compared
_BLOCK = 512  # images at a time


@dataclass(frozen=True)
class Pair:
    """An image of the evaluated split, and one of the training images.

    Attributes:
        row: Of the evaluated split.
        other: Row of the training split.
        why: What is the same; empty for a pair that is only near.
        cosine: Of their features.
    """

    row: int
    other: int
    why: str
    cosine: float


def find_pairs(names: Sequence[Sequence[str]],
               files: Sequence[Sequence[int]],
               features: Sequence[np.ndarray],
               pixels: Sequence[Callable[[int], np.ndarray | None]],
               device: torch.device | str = 'cpu'
               ) -> tuple[list[Pair], list[Pair]]:
    """Pairs of the same image, and the nearest ones of the others.

    The same are images of one path, of one content, of equal pixels, or of
    equal features. Of each image of the evaluated split, one pair is given.

    Args:
        names: Of the images of the training and of the evaluated split.
        files: Rows of each whose names are those of local files.
        features: Of each.
        pixels: What gives the array of an image of each by its row; None
            where it cannot be read.
        device: Where features are compared.

    Returns:
        Pairs of the same image, in order; for each other image the nearest
        training image, the nearest pair first: no similarity tells that
        two are the same, so that nothing is claimed of them.
    """
    same: dict[int, tuple[int, str]] = {}
    known = {name: row for row, name in enumerate(names[0])}
    for row, name in enumerate(names[1]):
        # some data in memory call their images by their numbers
        if name in known and name != str(row):
            same[row] = known[name], SAME_FILE
    rows = {names[1][row]: row for row in files[1]}
    for group in copies([(split, names[split][row], None) for split in (0, 1)
                         for row in files[split]]):
        first = next(path for split, path, _ in group if split == 0)
        for split, path, _ in group:
            if split == 1:
                same.setdefault(rows[path], (
                    known[first], 'files of the same content'))
    nearest, cosines = _nearest(*features, device)
    for row in range(len(names[1])):
        if row in same:
            continue
        for other, cosine in zip(nearest[row], cosines[row], strict=True):
            if cosine < _ALIKE:
                break
            mine, theirs = pixels[1](row), pixels[0](int(other))
            if mine is not None and np.array_equal(mine, theirs):
                same[row] = int(other), 'equal pixels'
                break
            if np.array_equal(features[1][row], features[0][other]):
                same[row] = int(other), 'equal features'
                break
    asked, base = map(unit, reversed(features))

    def pair(row: int, other: int, why: str) -> Pair:
        return Pair(row, other, why, float(asked[row] @ base[other]))

    near = sorted((pair(row, int(nearest[row][0]), '')
                   for row in range(len(names[1])) if row not in same),
                  key=lambda one: -one.cosine)
    return [pair(row, *same[row]) for row in sorted(same)], near


def _nearest(known: np.ndarray, asked: np.ndarray,
             device: torch.device | str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the nearest known features, and their cosines."""
    base = unit(known).to(device)
    found = []
    with bar(len(asked), 'copies') as advance:
        for start in range(0, len(asked), _BLOCK):
            x = unit(asked[start:start + _BLOCK]).to(device)
            found.append((x @ base.T).topk(min(_FEW, len(base))))
            advance(len(x))
    return (torch.cat([places for _, places in found]).cpu().numpy(),
            torch.cat([cosines for cosines, _ in found]).cpu().numpy())
