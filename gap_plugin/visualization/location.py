"""Where the network's input lies in the original image.

Crops leave no trace in what a pipeline says of an image. What it does to
places is found by pushing images through it whose pixels are coordinates.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

#: How far coordinates may lie from those of the fit, in pixels of the input
#: or of the image, whichever are larger; the share of them that may lie
#: further off.
_OFF, _SHARE = 1.5, .02


@dataclass(frozen=True)
class Location:
    """An affine map from pixels of the input to those of the image.

    Coordinates are (x, y), with integers at the corners of pixels: an image
    of width W reaches from 0 to W.

    Attributes:
        matrix: ``(2, 3)``: ``matrix @ (x, y, 1)`` is the place in the image.
        size: Height and width of the input.
    """

    matrix: np.ndarray
    size: tuple[int, int]

    @classmethod
    def whole(cls, image: np.ndarray) -> 'Location':
        """The location of an input that is the whole image."""
        return cls(np.eye(2, 3), image.shape[:2])

    def corners(self) -> np.ndarray:
        """The input's corners in the image, ``(4, 2)``, clockwise."""
        height, width = self.size
        corners = [(0, 0, 1), (width, 0, 1), (width, height, 1),
                   (0, height, 1)]
        return np.array(corners) @ self.matrix.T

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the input in the image."""
        corners = self.corners()
        return (*corners.min(0), *corners.max(0))


def locate(transform: Callable[[np.ndarray], np.ndarray],
           image: np.ndarray) -> Location:
    """Find out where the pixels of the input come from.

    Four images of the same shape and type go through the same transforms,
    which have to do the same to each: a black and a white one, which tell
    what is image and what is a border, and one each whose values grow with x
    and y. An affine map is fitted to what comes out.

    Args:
        transform: From the array of an image to the input, ``(H, W)`` or
            ``(H, W, C)``.
        image: As it is loaded, ``(H, W)`` or ``(H, W, C)``, uint8 or of
            floats up to 255.

    Raises:
        ValueError: If the transforms do not move pixels by an affine map.
    """
    height, width = image.shape[:2]
    level = {0: np.zeros((height, width)), 1: np.ones((height, width))}
    level['x'] = np.tile((np.arange(width) + .5) / width, (height, 1))
    level['y'] = np.tile((np.arange(height) + .5)[:, None] / height,
                         (1, width))
    seen = {}
    for name, values in level.items():
        # as grey as can be, so that no order of channels matters
        values = values if image.ndim == 2 else np.repeat(
            values[..., None], image.shape[2], axis=2)
        values = 255 * values
        if image.dtype.kind in 'ui':
            values = np.rint(values)
        out = np.asarray(transform(values.astype(image.dtype)), np.float64)
        seen[name] = out if out.ndim == 2 else out.mean(2)
    range_ = seen[1] - seen[0]
    inside = range_ > .99 * range_.max()
    if range_.max() <= 0 or inside.sum() < 9:
        raise _refusal('nothing of the image is left')
    rows, columns = np.nonzero(inside)
    ours = np.stack([columns + .5, rows + .5, np.ones(len(rows))], 1)
    theirs = np.stack([size * ((seen[axis] - seen[0])[inside]
                               / range_[inside])
                       for axis, size in (('x', width), ('y', height))], 1)
    size = seen[0].shape
    matrix = _fit(ours, theirs)
    # at its edges an image is interpolated from one side alone
    step = np.abs(matrix[:, :2]).sum(1)
    found = ours @ matrix.T
    inner = np.all((found > 2 * step) & (
        found < np.array([width, height]) - 2 * step), 1)
    if inner.sum() >= 9 and _spread(ours[inner]):
        ours, theirs = ours[inner], theirs[inner]
        matrix = _fit(ours, theirs)
    unit = np.maximum(step, 1) + np.array([width, height]) / 255
    off = np.abs(ours @ matrix.T - theirs) > _OFF * unit
    if off.mean() > _SHARE:
        raise _refusal('what they do is no affine map')
    return Location(matrix, size)


def _fit(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(ours, theirs, rcond=None)[0].T


def _spread(places: np.ndarray) -> bool:
    """Whether places tell both axes."""
    return bool(np.all(np.ptp(places[:, :2], axis=0) >= 2))


def _refusal(why: str) -> ValueError:
    return ValueError(f'where the transforms of the pipeline move an image '
                      f'cannot be told ({why}): draw on the input instead, '
                      'or take the pipeline of a test.')
