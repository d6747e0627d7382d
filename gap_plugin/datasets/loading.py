"""An image file as an array: timm's pixels, in MMPretrain's channel order."""

import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.fileio import get
from mmpretrain.registry import TRANSFORMS
from PIL import Image, UnidentifiedImageError

from ..arguments import check_arguments
from ..messages import first_line
from ..timm_network import DataSource
from .binding import NetworkTransform

#: How an image is turned upright, by its EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
REPLACE_IT = '; remove or replace it'
_TIFF = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')


@TRANSFORMS.register_module()
class LoadTimmImage(NetworkTransform):
    """Load an image as timm does, by Pillow, in the network's channels.

    Colour is Pillow's ``convert('RGB')`` and grey its ``convert('L')``, to
    the bit, in the order in which ``LoadImageFromFile`` gives them, BGR. An
    image that is loaded already (``results['img']``, as inferencers give
    it) gets the network's channels, too.

    Args:
        in_channels: 1: grey; 3: colour; 4: with an alpha channel, or of
            four bands; others: ``.npy`` and TIFF files of as many bands.
            None for those of the network.
        bits: How many of their 16 bits images of 16 bits use, 8 to 16; the
            upper 8 of these are kept. None: 16, and an image that would
            come out nearly black is refused.
        upright: Whether images are turned as EXIF says. timm does not.
        backend_args: Of MMEngine's file backend.
        network: As of :class:`NetworkTransform`.

    Raises:
        ValueError: If an option is out of its range.
    """

    def __init__(self,
                 in_channels: int | None = None,
                 bits: int | None = None,
                 upright: bool = True,
                 backend_args: dict[str, Any] | None = None,
                 network: dict[str, Any] | None = None) -> None:
        super().__init__(network=network)
        check_arguments(
            'LoadTimmImage', flag=dict(upright=upright),
            count_or_none=dict(in_channels=in_channels),
            bits_or_none=dict(bits=bits),
            settings_or_none=dict(backend_args=backend_args))
        self.in_channels = in_channels
        self.bits = bits
        self.upright = upright
        self.backend_args = backend_args
        self._warned = True  # colour is what anyone expects

    def matters(self, source: DataSource) -> int:
        """Of a network's images, the number of channels."""
        return self.in_channels or source.in_channels

    def _channels(self) -> int:
        if self.in_channels is not None:
            return self.in_channels
        try:
            return self.source().in_channels
        except ValueError:
            raise ValueError(
                'LoadTimmImage has no in_channels, and networks of different '
                'ones are in this process: give it in_channels.') from None

    def transform(self, results: dict) -> dict:
        """Give ``img``, ``img_shape`` and ``ori_shape``.

        Raises:
            ValueError: If the image cannot be read; in one line, with its
                name.
        """
        channels = self._channels()
        name, image = results.get('img_path'), results.get('img')
        try:
            if image is None:
                image = self._read(name, channels)
            image = _of_channels(self._of_8_bits(image), channels)
        except ValueError as error:
            raise ValueError(cannot_read(name) + first_line(error)) from error
        results['img'] = image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results

    def _read(self, name: str, channels: int) -> np.ndarray:
        """What a file holds, as near to these channels as its kind has."""
        try:
            content = get(name, backend_args=self.backend_args)
            bands = _bands(content, channels)
            if bands is not None:
                return bands
            with Image.open(io.BytesIO(content)) as image:
                kind, mode = image.format, image.mode
                deep = ';16' in str(image.tile)
                image.load()
            turn = _turn(image) if self.upright else None
            if turn is not None:
                image = image.transpose(turn)
        except (ImportError, MemoryError):
            raise
        except Exception as error:
            # what is broken makes decoders raise errors of all kinds
            raise ValueError(_reason(error) + REPLACE_IT) from error
        _check_mode(mode, kind)
        if mode[0] == 'I':
            grey = np.array(image).astype(np.uint16)
            # Pillow spreads what these two use over all 16 bits
            return grey if kind not in ('PPM', 'JPEG2000') else (
                grey >> 8).astype(np.uint8)
        alpha = channels == 4 and image.getbands()[-1] == 'A'
        target = 'L' if channels == 1 else 'RGBA' if alpha else 'RGB'
        if mode in ('La', 'LAB'):  # which have no way straight to 'L'
            image = image.convert('LA' if mode == 'La' else 'RGB')
        if image.mode != target:
            image = image.convert(target)
        pixels = np.asarray(image)
        if deep:
            self._check_deep(pixels[..., :3] if alpha else pixels)
        if channels == 1:
            return pixels.copy()
        return cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGRA if alpha else
                            cv2.COLOR_RGB2BGR)

    def _of_8_bits(self, image: np.ndarray) -> np.ndarray:
        if image.dtype == np.uint8:
            return image
        if image.dtype != np.uint16:
            raise ValueError(
                f'its values are {image.dtype}, and nothing says which are '
                'black and white: save it with 8 or 16 bits, or load it by '
                'a transform of your own')
        used, bits = int(image.max()).bit_length(), self.bits or 16
        if used > bits:
            raise ValueError(f'it uses {used} bits: bits={bits} of '
                             'LoadTimmImage is too small')
        if self.bits is None and 0 < used <= 12:
            raise ValueError(
                f'it uses {used} of its 16 bits, and would come out nearly '
                'black: give LoadTimmImage the bits that the images use, '
                'such as bits=12, or bits=16 if they are as dark as that')
        return (image >> (bits - 8)).astype(np.uint8)

    def _check_deep(self, pixels: np.ndarray) -> None:
        """Of colours of 16 bits, which Pillow gives by their upper 8."""
        if self.bits not in (None, 16):
            raise ValueError(f'bits={self.bits} of LoadTimmImage is for grey '
                             'images: save colours with 8 bits')
        if self.bits is None and pixels.max() < 16:
            raise ValueError(
                'it uses 12 of its 16 bits at most, and would come out nearly'
                ' black: save it with 8, or give LoadTimmImage bits=16 if it '
                'is as dark as that')

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(in_channels={self.in_channels}, '
                f'bits={self.bits}, upright={self.upright}, '
                f'backend_args={self.backend_args})')


def cannot_read(name: str | None) -> str:
    """What the message of an image that cannot be read begins with."""
    who = 'an image' if name is None else repr(str(name))
    return f'{who} cannot be read: '


def unreadable(paths: Iterable[str | Path]) -> list[str]:
    """Those of some files that :class:`LoadTimmImage` refuses at once.

    Their first bytes are read, which say whether they are images, and of
    which kind: all of an image is read when it is used.
    """
    with ThreadPoolExecutor() as pool:
        return [str(path) for path, bad in pool.map(_refused, paths) if bad]


def _refused(path: str | Path) -> tuple[str | Path, bool]:
    try:
        with Image.open(path) as image:
            _check_mode(image.mode, image.format)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return path, True
    return path, False


def _check_mode(mode: str, kind: str | None) -> None:
    """Refuse numbers that have no known range.

    Older versions of Pillow open a PNG of 16 bits as ``I``, and all open a
    PPM so.
    """
    if mode == 'F' or mode == 'I' and kind not in ('PNG', 'PPM'):
        raise ValueError(
            f'its values are {dict(F="floats", I="32-bit integers")[mode]}, '
            'and nothing says which are black and white: save it with 8 or '
            '16 bits, or load it by a transform of your own')


def _turn(image: Image.Image) -> Image.Transpose | None:
    with suppress(SyntaxError, ValueError):  # no EXIF that one can read
        return _TURNS.get(image.getexif().get(_ORIENTATION))


def _bands(content: bytes, channels: int) -> np.ndarray | None:
    """What has other bands than Pillow knows; None is left to Pillow."""
    if channels in (1, 3):
        return None
    if content.startswith(b'\x93NUMPY'):
        array = np.load(io.BytesIO(content), allow_pickle=False)
    elif content.startswith(_TIFF):
        with suppress(UnidentifiedImageError), Image.open(
                io.BytesIO(content)) as image:
            if image.mode == 'RGBA':
                return None
        try:
            import tifffile
        except ImportError:
            raise ImportError('LoadTimmImage reads TIFF files of several '
                              'bands by tifffile: pip install tifffile'
                              ) from None
        array = tifffile.imread(io.BytesIO(content))
    else:
        return None
    if array.ndim == 3 and array.shape[0] == channels != array.shape[2]:
        array = np.moveaxis(array, 0, 2)  # band after band
    return np.ascontiguousarray(array)


def _of_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """An image of grey, BGR, BGRA or more bands, with so many channels."""
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    found = 1 if image.ndim == 2 else image.shape[-1]
    if image.ndim in (2, 3) and found == channels:
        return image
    if image.ndim == 2 and channels == 3:
        return np.repeat(image[..., None], 3, axis=2)
    if image.ndim == 3 and found in (3, 4) and channels in (1, 3):
        if channels == 3:
            return np.ascontiguousarray(image[..., :3])
        return np.array(Image.fromarray(
            np.ascontiguousarray(image[..., 2::-1])).convert('L'))
    raise ValueError(f'its shape is {image.shape}, and the network takes '
                     f'{channels} channels')


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return 'it is no image that Pillow knows'
    return getattr(error, 'strerror', None) or first_line(error)
