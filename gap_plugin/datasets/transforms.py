"""timm's preprocessing, as transforms that follow a network."""

from typing import Any

from mmcv.image import impad
from mmcv.transforms import BaseTransform, Compose
from mmengine.logging import print_log
from mmpretrain.registry import TRANSFORMS
from torch.utils.data import get_worker_info

from ..arguments import check_arguments
from ..timm_network import DataSource, check_size, pair
from .binding import NetworkTransform
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


class _TimmTransform(NetworkTransform):
    """Stock transforms that follow from a network of timm."""

    #: Names of the options.
    OPTIONS: tuple[str, ...] = ()

    def __init__(self, model_name: str | None = None, in_channels: int = 3,
                 network: dict[str, Any] | None = None,
                 **options: Any) -> None:
        unknown = sorted(set(options) - set(self.OPTIONS))
        if unknown:
            raise ValueError(
                f'{type(self).__name__} has no {", ".join(unknown)}; it '
                f'takes model_name, in_channels, {", ".join(self.OPTIONS)}.')
        self.options = options
        self._made: tuple[DataSource, Compose] | None = None
        super().__init__(model_name, in_channels, network)
        if self._bound is not None:
            self.steps()

    def _stock(self, source: DataSource) -> list[dict[str, Any]]:
        raise NotImplementedError

    def bind_network(self, source: DataSource) -> bool:
        """As of :class:`NetworkTransform`, errors of the options included."""
        changed = super().bind_network(source)
        self.steps()
        return changed

    def steps(self) -> Compose:
        """The stock transforms, made anew for another network."""
        source = self.source()
        if self._made is None or self._made[0].images != source.images:
            stock = self._stock(source)
            if get_worker_info() is None:
                print_log(f'{type(self).__name__} for {source.model_name}: '
                          f'{stock}', 'current')
            # MMPretrain's registry, whatever scope a script has set
            self._made = source, Compose(
                [TRANSFORMS.build(step) for step in stock])
        return self._made[1]

    def transform(self, results: dict) -> dict | None:
        """Apply the stock transforms."""
        image = results.get('img')
        if getattr(image, 'ndim', 0) == 3 and image.shape[2] == 1:
            results['img'] = image[..., 0]  # as grey files are loaded
        return self.steps()(results)

    def __repr__(self) -> str:
        made = self._made and self._made[1]
        return (f'{type(self).__name__}(model_name={self.model_name!r}, '
                f'{self.options}, {made})')


@TRANSFORMS.register_module()
class TimmTestTransform(_TimmTransform):
    """The evaluation transform of timm between loading and packing.

    Args:
        model_name: Any name of timm; None for the network that it is bound
            to, its ``img_size`` and ``in_channels`` included.
        in_channels: Channels of the image, with ``model_name``.
        network: As of :class:`NetworkTransform`.
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
        model_name: Any name of timm; None for the network that it is bound
            to, its ``img_size`` and ``in_channels`` included.
        in_channels: Channels of the image, with ``model_name``.
        network: As of :class:`NetworkTransform`.
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
