"""What timm says about the images that a network was trained on."""

import gc
import math
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any

from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg

from ..arguments import check_arguments
from .create import NetworkSpec, check_name, create_bare, is_registered

CROP_MODES = ('center', 'squash', 'border')


@dataclass(frozen=True)
class DataSettings:
    """How an image becomes the input of a network.

    Attributes:
        size: Height and width of the input.
        interpolation: ``'bilinear'``, ``'bicubic'``, ...
        crop_pct: Side of the crop over side of the resized image.
        crop_mode: ``'center'``: short edge resized, centre cropped;
            ``'squash'``: both edges resized; ``'border'``: long edge
            resized, the rest padded with the mean.
        mean: Per channel, 0 to 1, in the order R, G, B.
        std: Per channel, of values from 0 to 1, in the order R, G, B.
    """

    size: tuple[int, int]
    interpolation: str
    crop_pct: float
    crop_mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def resized(self) -> tuple[int, int]:
        """Height and width ahead of the crop, as timm rounds them."""
        height, width = (math.floor(s / self.crop_pct) for s in self.size)
        return height, width

    @property
    def normalisation(self) -> dict[str, Any]:
        """Arguments of MMPretrain's data preprocessor, which counts to 255."""
        return dict(
            mean=[round(255 * v, 4) for v in self.mean],
            std=[round(255 * v, 4) for v in self.std],
            to_rgb=len(self.mean) == 3)


@dataclass(frozen=True)
class DataSource:
    """Whose images: what a network's settings follow from.

    Attributes:
        model_name: For messages.
        pretrained_cfg: timm's description of the weights.
        img_size: Height and width that the network was built for, None for
            its own.
        in_channels: Channels of the image.
    """

    model_name: str
    pretrained_cfg: dict[str, Any]
    img_size: tuple[int, int] | None = None
    in_channels: int = 3

    @cached_property
    def images(self) -> tuple:
        """What tells apart the images of two networks."""
        return self.in_channels, self.settings(False), self.settings(True)

    def settings(self, test: bool, **given: Any) -> DataSettings:
        """Settings for training or testing.

        Args:
            test: Whether timm's test size and crop are taken, where it has
                them apart from those of training.
            **given: ``img_size``, ``interpolation``, ``crop_pct`` or
                ``crop_mode`` in place of timm's; None for timm's.

        Raises:
            ValueError: If one of them is out of range.
        """
        check_arguments('the preprocessing', flag=dict(use_test_size=test))
        size = given.pop('img_size', None)
        _check_given(size, **given)
        size = self.img_size if size is None else size
        if size is not None:
            given['input_size'] = (self.in_channels, *pair(size))
        found = resolve_data_config(
            given,
            # timm takes no empty one
            pretrained_cfg=self.pretrained_cfg or dict(crop_mode='center'),
            use_test_size=test)
        mean, std = (_per_channel(found[key], self.in_channels)
                     for key in ('mean', 'std'))
        return DataSettings(
            size=tuple(found['input_size'][1:]),
            interpolation=found['interpolation'],
            crop_pct=found['crop_pct'],
            crop_mode=found['crop_mode'],
            mean=mean,
            std=std)


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of a size, one number meaning a square."""
    return (size, size) if isinstance(size, int) else tuple(size)


def check_size(size: Any, name: str = 'img_size') -> None:
    """Refuse what is no image size.

    Args:
        size: What is given.
        name: Of the argument.

    Raises:
        ValueError: If it is neither a positive integer nor a pair of them.
    """
    sides = size if isinstance(size, (list, tuple)) else (size, size)
    if len(sides) != 2 or not all(
            type(side) is int and side > 0 for side in sides):
        raise ValueError(f'{name} must be a positive integer or a pair '
                         f'(height, width) of them, got {size!r}.')


def _check_given(size: Any, interpolation: str | None = None,
                 crop_pct: float | None = None,
                 crop_mode: str | None = None) -> None:
    if size is not None:
        check_size(size)
    allowed = ('nearest', 'bilinear', 'bicubic', 'box', 'lanczos', 'hamming')
    if interpolation is not None and interpolation not in allowed:
        raise ValueError(f'interpolation must be one of {allowed}, got '
                         f'{interpolation!r}.')
    check_arguments('the preprocessing',
                    crop_or_none=dict(crop_pct=crop_pct))
    if crop_mode is not None and crop_mode not in CROP_MODES:
        raise ValueError(f'crop_mode must be one of {CROP_MODES}, got '
                         f'{crop_mode!r}.')


def _per_channel(values: tuple[float, ...],
                 channels: int) -> tuple[float, ...]:
    """Statistics of RGB for another number of channels.

    As timm adapts the weights of the stem: a grey image is the mean of
    three, further channels repeat them.
    """
    if channels == len(values):
        return tuple(values)
    if channels == 1:
        return (sum(values) / len(values), )
    return tuple(values[i % len(values)] for i in range(channels))


def data_source(model_name: str, in_channels: int = 3) -> DataSource:
    """Look a network up by name.

    Args:
        model_name: Any name that ``timm.create_model`` takes.
        in_channels: Channels of the image.

    Raises:
        ValueError: If timm does not know the name.
        OSError: If a folder or repository is not there.
    """
    check_arguments('the preprocessing', text=dict(model_name=model_name),
                    count=dict(in_channels=in_channels))
    check_name(model_name)
    found = (get_pretrained_cfg(model_name)
             if is_registered(model_name) else None)
    if found is None:  # a former name, a folder or a repository
        cfg = create_bare(NetworkSpec(model_name)).pretrained_cfg
    else:
        cfg = found.to_dict()
    return DataSource(model_name, cfg, in_channels=in_channels)


_alive: dict[int, weakref.ref] = {}


def remember(network: Any) -> None:
    """Note a network, by its ``data_source``, for as long as it lives."""
    key = id(network)
    _alive[key] = weakref.ref(network, lambda _: _alive.pop(key, None))


def live_source(what: str, matters: Callable[[DataSource], Hashable]
                = attrgetter('images')) -> DataSource | None:
    """Whose images are meant, where nothing says it.

    Args:
        what: Who asks, for messages.
        matters: What of the images matters to it: networks that have it in
            common count as one.

    Returns:
        The one setting of the networks that live in this process; None if
        there are none.

    Raises:
        ValueError: If there are several.
    """
    found = _live(matters)
    if len(found) > 1:
        gc.collect()  # a runner that has been let go is a circle
        found = _live(matters)
    if len(found) > 1:
        names = ' and '.join(
            f'{source.model_name!r} at {source.settings(False).size}'
            for source in found)
        raise ValueError(
            f'{what} has no model_name, and networks of different images '
            f'are in this process: {names}. Give model_name and img_size; '
            "for a runner, default_hooks=dict(binding=dict(type='"
            "BindPipelineHook')) will do, too.")
    return found[0] if found else None


def _live(matters: Callable[[DataSource], Hashable]) -> list[DataSource]:
    """One source for each setting among the networks that are alive."""
    found: dict[Hashable, DataSource] = {}
    for reference in list(_alive.values()):
        network = reference()
        if network is not None:
            source = network.data_source
            found.setdefault(matters(source), source)
    return list(found.values())
