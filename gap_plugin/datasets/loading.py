"""Files of images: which of them open."""

import itertools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image


def unreadable(paths: Iterable[str | Path]) -> list[str]:
    """Those of some files that do not open as images, or that break off.

    All of a file is read, without the cost of all its pixels: of a PNG its
    check sums, of a JPEG an image of an eighth of the size.
    """
    bad: list[str] = []
    paths = iter(paths)
    with ThreadPoolExecutor() as pool:
        # by parts: all that is submitted is held in memory
        while part := list(itertools.islice(paths, 4096)):
            bad += filter(None, pool.map(_unreadable, part))
    return bad


def _unreadable(path: str | Path) -> str | None:
    try:
        with Image.open(path) as image:
            if image.format == 'PNG':
                image.verify()
            else:
                image.draft('L', (max(image.width // 8, 1),
                                  max(image.height // 8, 1)))
                image.load()
    except (OSError, SyntaxError, ValueError,
            Image.DecompressionBombError):
        return str(path)
    return None
