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
        return (*corners.min(0).tolist(), *corners.max(0).tolist())


def locate(transform: Callable[[np.ndarray], np.ndarray],
           image: np.ndarray) -> Location:
    """Find out where the pixels of the input come from.

    Images of the same shape and type go through the same transforms, which
    have to do the same to each: a black and a white one, which tell what is
    image and what is a border, and ramps that grow with x and with y. An
    affine map is fitted to what comes out. As a ramp of a large image has
    fewer steps than pixels, finer ones follow, which go up and down.

    Args:
        transform: From the array of an image to the input, ``(H, W)`` or
            ``(H, W, C)``.
        image: As it is loaded, ``(H, W)`` or ``(H, W, C)``, of integers or
            of floats up to 255.

    Raises:
        ValueError: If the transforms do not move pixels by an affine map.
    """
    def pushed(values: np.ndarray) -> np.ndarray:
        values = np.broadcast_to(255 * values, image.shape[:2])
        if image.dtype.kind in 'ui':
            values = np.rint(values)
        values = values.astype(image.dtype)
        if image.ndim == 3:  # grey, so that no order of channels matters
            values = np.repeat(values[..., None], image.shape[2], axis=2)
        out = np.asarray(transform(np.ascontiguousarray(values)), np.float64)
        return out if out.ndim == 2 else out.mean(2)

    black, white = pushed(np.zeros((1, 1))), pushed(np.ones((1, 1)))
    contrast = white - black
    inside = contrast > .99 * contrast.max()
    if contrast.max() <= 0 or inside.sum() < 9:
        raise _refusal('nothing of the image is left')
    rows, columns = np.nonzero(inside)
    ours = np.stack([columns + .5, rows + .5, np.ones(len(rows))], 1)
    sides = np.array(image.shape[1::-1])

    def shares(axis: int, folds: int) -> np.ndarray:
        ramp = _folded((np.arange(sides[axis]) + .5) / sides[axis], folds)
        out = pushed(ramp[None] if axis == 0 else ramp[:, None])
        return ((out - black) / contrast.clip(1e-9))[inside]

    theirs = sides * np.stack([shares(0, 1), shares(1, 1)], 1)
    matrix = _fit(ours, theirs)
    seen = np.linalg.svd(matrix[:, :2], compute_uv=False)[-1]
    if seen * min(black.shape) < .5:
        raise _refusal('less than a pixel of the image is left')
    for axis in (0, 1):
        kept, places = np.ones(len(ours), bool), theirs[:, axis]
        step = np.abs(matrix[axis, :2]).sum()  # from pixel to pixel
        folds = int(min(sides[axis] // 256, sides[axis] / step // 16, 16))
        found = ours @ matrix[axis] / sides[axis]
        if folds > 1:
            places = sides[axis] * _unfolded(shares(axis, folds), found,
                                             folds)
        folds = max(folds, 1)
        # at an edge or a fold, what is interpolated is no longer straight
        margin = 2 * max(step, 1) * folds / sides[axis]
        inner = np.abs(found * folds % 1 - .5) < .5 - margin
        inner &= (found > 0) & (found < 1)
        if inner.sum() >= 9 and np.all(np.ptp(ours[inner], 0)[:2] >= 2):
            kept = inner
        matrix[axis] = _fit(ours[kept], places[kept])
        unit = max(step, 1) + sides[axis] / folds / 255
        off = np.abs(ours @ matrix[axis] - places)[kept] > _OFF * unit
        if off.mean() > _SHARE:
            raise _refusal('what they do is no affine map')
    return Location(matrix, black.shape)


def _folded(places: np.ndarray, folds: int) -> np.ndarray:
    """Places from 0 to 1 as a ramp that goes up and down so many times."""
    fold = np.minimum(np.floor(places * folds), folds - 1)
    share = places * folds - fold
    return np.where(fold % 2, 1 - share, share)


def _unfolded(ramp: np.ndarray, near: np.ndarray, folds: int) -> np.ndarray:
    """Places of a folded ramp, which are known roughly."""
    fold = np.clip(np.floor(near * folds), 0, folds - 1)
    return (fold + np.where(fold % 2, 1 - ramp, ramp)) / folds


def _fit(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(ours, theirs, rcond=None)[0].T


def _refusal(why: str) -> ValueError:
    return ValueError(f'where the transforms of the pipeline move an image '
                      f'cannot be told ({why}).')
