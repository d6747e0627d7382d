"""timm's preprocessing, as transforms that follow a network."""

import logging
from typing import Any

from mmcv.image import impad
from mmcv.transforms import BaseTransform, Compose
from mmengine.logging import print_log
from mmpretrain.registry import TRANSFORMS

from ..arguments import check_arguments
from ..timm_network import (
    DataSource,
    check_size,
    data_source,
    last_built,
    pair,
)
from .pipelines import test_steps, train_steps


@TRANSFORMS.register_module()
class CenterPad(BaseTransform):
    """Pad an image evenly on both sides; timm's ``'border'`` crop mode.

    MMCV's ``Pad`` adds to the right and the bottom only.

    Args:
        size: Least height and width of the result.
        pad_val: Value per channel, in the order of the image's.
    """

    def __init__(self, size: tuple[int, int],
                 pad_val: int | tuple[int, ...] = 0) -> None:
        check_size(size, 'size')
        check_arguments('CenterPad', fill=dict(pad_val=pad_val))
        self.size = pair(size)
        self.pad_val = pad_val

    def transform(self, results: dict) -> dict:
        """Pad ``results['img']``."""
        image = results['img']
        over = [max(want - have, 0) for want, have in zip(
            self.size, image.shape[:2], strict=True)]
        top, left = (extra // 2 for extra in over)
        value = self.pad_val
        if image.ndim == 2 and not isinstance(value, int):
            value = value[0]
        results['img'] = impad(
            image,
            padding=(left, top, over[1] - left, over[0] - top),
            pad_val=value)
        results['img_shape'] = results['img'].shape[:2]
        return results

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(size={self.size}, '
                f'pad_val={self.pad_val})')


class _TimmTransform(BaseTransform):
    """Stock transforms that follow from a network of timm.

    Without ``model_name`` it is the one that was built last in this process:
    a runner builds its model ahead of its datasets. So a pipeline follows
    the backbone when its name is changed on the command line.
    """

    #: Names of the options.
    OPTIONS: tuple[str, ...] = ()

    def __init__(self, model_name: str | None = None, in_channels: int = 3,
                 **options: Any) -> None:
        unknown = sorted(set(options) - set(self.OPTIONS))
        if unknown:
            raise ValueError(
                f'{type(self).__name__} has no {", ".join(unknown)}; it '
                f'takes model_name, in_channels, {", ".join(self.OPTIONS)}.')
        check_arguments(type(self).__name__,
                        text_or_none=dict(model_name=model_name),
                        count=dict(in_channels=in_channels))
        self.model_name = model_name
        self.options = options
        self._steps: Compose | None = None
        self._source: DataSource | None = None
        self._checked = model_name is not None
        if model_name is not None:
            self._build(data_source(model_name, in_channels))
        elif last_built()[0] is not None:
            self._resolve()

    def _stock(self, source: DataSource) -> list[dict[str, Any]]:
        raise NotImplementedError

    def _build(self, source: DataSource) -> None:
        stock = self._stock(source)
        print_log(
            f'{type(self).__name__} for {source.model_name}: {stock}',
            'current')
        # MMPretrain's registry, whatever scope a script has set
        self._source = source
        self._steps = Compose([TRANSFORMS.build(step) for step in stock])

    def _resolve(self) -> Compose:
        """Find out whose images these are, now at the latest."""
        if self._steps is not None:
            return self._steps
        name = type(self).__name__
        source, others = last_built()
        if source is None:
            source = DataSource("timm's defaults", {})
            print_log(
                f'{name}: no network of timm has been built in this process, '
                "so that timm's defaults are taken: give model_name if that "
                'is not what you want.', 'current', logging.WARNING)
        elif others:
            print_log(
                f'{name}: several networks have been built in this process; '
                f'{source.model_name!r}, the last, is taken: give model_name '
                'and img_size to be sure.', 'current', logging.WARNING)
        self._build(source)
        return self._steps

    def _check(self) -> None:
        """Tell when a network has been built since, ahead of the first use."""
        self._checked = True
        last, _ = last_built()
        if last is not None and last != self._source:
            print_log(
                f'{type(self).__name__} follows {self._source.model_name!r}, '
                f'but {last.model_name!r} has been built since: if the images '
                'are for that, build the dataset after it, or give '
                'model_name and img_size.', 'current', logging.WARNING)

    def transform(self, results: dict) -> dict | None:
        """Apply the stock transforms."""
        steps = self._resolve()
        if not self._checked:
            self._check()
        image = results.get('img')
        if getattr(image, 'ndim', 0) == 3 and image.shape[2] == 1:
            results['img'] = image[..., 0]  # as grey files are loaded
        return steps(results)

    def __getstate__(self) -> dict[str, Any]:
        # a worker process that starts anew knows nothing of the network
        self._resolve()
        return self.__dict__

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(model_name={self.model_name!r}, '
                f'{self.options}, {self._steps})')


@TRANSFORMS.register_module()
class TimmTestTransform(_TimmTransform):
    """The evaluation transform of timm between loading and packing.

    Args:
        model_name: Any name of timm; None for the network that was built
            last in this process, its ``img_size`` and ``in_channels``
            included.
        in_channels: Channels of the image, with ``model_name``.
        **options: ``img_size``, ``use_test_size``, ``interpolation``,
            ``crop_pct`` and ``crop_mode`` of :func:`timm_test_pipeline`.
    """

    OPTIONS = ('img_size', 'use_test_size', 'interpolation', 'crop_pct',
               'crop_mode')

    def _stock(self, source: DataSource) -> list[dict[str, Any]]:
        options = dict(self.options)
        test = options.pop('use_test_size', True)
        return test_steps(source.settings(test, **options))


@TRANSFORMS.register_module()
class TimmTrainTransform(_TimmTransform):
    """The training transform of timm between loading and packing.

    Args:
        model_name: Any name of timm; None for the network that was built
            last in this process, its ``img_size`` and ``in_channels``
            included.
        in_channels: Channels of the image, with ``model_name``.
        **options: ``img_size``, ``interpolation``, ``scale``, ``ratio``,
            ``hflip``, ``color_jitter``, ``auto_augment`` and
            ``random_erasing`` of :func:`timm_train_pipeline`.
    """

    OPTIONS = ('img_size', 'interpolation', 'scale', 'ratio', 'hflip',
               'color_jitter', 'auto_augment', 'random_erasing')

    def _stock(self, source: DataSource) -> list[dict[str, Any]]:
        options = dict(self.options)
        given = {
            key: options.pop(key)
            for key in ('img_size', 'interpolation') if key in options
        }
        return train_steps(source.settings(False, **given), **options)
