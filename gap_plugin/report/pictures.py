"""Pictures as they stand in a page: small, and in it."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..visualization.drawing import coloured
from ..visualization.location import Location

_QUALITY = 80
#: Images of no more pixels a side are shown pixel by pixel.
_TINY = 64


@dataclass(frozen=True)
class Picture:
    """An image of a page.

    Attributes:
        uri: A data URI.
        width: In pixels.
        height: In pixels.
        tiny: Whether its pixels are to be seen.
    """

    uri: str
    width: int
    height: int
    tiny: bool = False


class Album:
    """Pictures for one part of a page, as many as there is room for.

    Args:
        room: Bytes of all of them.
        side: Of the longer side of a picture, in pixels.

    Attributes:
        left_out (int): Pictures that there was no room for.
    """

    def __init__(self, room: int, side: int) -> None:
        self._room, self.side = room, side
        self.left_out = 0

    def add(self, image: np.ndarray | None) -> Picture | None:
        """A picture of an image; None without one, or without room.

        Args:
            image: ``(H, W, 3)``, uint8, RGB.
        """
        if image is None:
            return None
        shown = Image.fromarray(image)
        tiny = max(shown.size) <= _TINY
        shown.thumbnail((self.side, self.side))
        uri = data_uri(shown, 'PNG' if tiny else 'JPEG')
        if len(uri) > self._room:
            self.left_out += 1
            return None
        self._room -= len(uri)
        return Picture(uri, *shown.size, tiny)


def data_uri(image: Image.Image, kind: str) -> str:
    """An image as an address that holds all of it."""
    file = io.BytesIO()
    options = dict(quality=_QUALITY) if kind == 'JPEG' else {}
    image.save(file, kind, optimize=True, **options)
    text = base64.b64encode(file.getvalue()).decode('ascii')
    return f'data:image/{kind.lower()};base64,{text}'


def with_map(image: np.ndarray, values: np.ndarray, location: Location,
             scale: float, side: int) -> np.ndarray:
    """A map on its image, which is grey and light under it.

    Args:
        image: ``(H, W, 3)``, uint8, RGB.
        values: ``(h, w)``, in logits.
        location: Where the map lies on the image.
        scale: Value of full colour.
        side: Pixels of the longer side of what is returned.

    Returns:
        ``(H', W', 3)``, uint8.
    """
    height, width = image.shape[:2]
    factor = side / max(height, width)
    size = [max(1, round(factor * n)) for n in (width, height)]
    grey = Image.fromarray(image).convert('L').resize(
        size, Image.Resampling.NEAREST if max(height, width) <= _TINY
        else Image.Resampling.BICUBIC)
    under = Image.fromarray(
        (255 * .35 + .65 * np.asarray(grey)).astype(np.uint8)).convert('RGB')
    colours = Image.fromarray((255 * coloured(values, scale)).astype(
        np.uint8), 'RGBA')
    # pixels of the result -> of the image -> of the input -> of the map
    back = np.linalg.inv(np.vstack([location.matrix, [0, 0, 1]]))
    to_map = np.diag([colours.width / location.size[1],
                      colours.height / location.size[0], 1])
    matrix = to_map @ back @ np.diag([width / size[0], height / size[1], 1])
    over = colours.transform(size, Image.Transform.AFFINE,
                             tuple(matrix[:2].ravel()),
                             Image.Resampling.BILINEAR)
    under.paste(over, mask=over)
    return np.asarray(under)
