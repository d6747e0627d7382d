"""timm's preprocessing, as stock MMPretrain transforms.

Images are decoded and resized by Pillow, as timm does it: OpenCV's resizing
has no antialiasing and moves the accuracy of pretrained weights by up to two
points (timm issue 1324).
"""

import logging
from typing import Any

from mmcv.image import impad
from mmcv.transforms import BaseTransform, Compose
from mmengine.logging import print_log
from mmpretrain.registry import TRANSFORMS

from .timm_features import DataSettings, DataSource, data_source, last_built


def timm_test_pipeline(model_name: str,
                       *,
                       img_size: int | tuple[int, int] | None = None,
                       use_test_size: bool = True,
                       in_channels: int = 3,
                       interpolation: str | None = None,
                       crop_pct: float | None = None,
                       crop_mode: str | None = None) -> list[dict[str, Any]]:
    """The evaluation transform of timm (``create_transform``) as a pipeline.

    Normalisation is the data preprocessor's part, as everywhere in
    MMPretrain.

    Args:
        model_name: Any name that ``timm.create_model`` takes.
        img_size: Side, or height and width, of the input; None: timm's.
        use_test_size: Whether to take timm's ``test_input_size`` and
            ``test_crop_pct``, where a network has them, as timm's
            ``validate.py`` does.
        in_channels: 3: colour; 1: grey; others: as the file has them,
            resized by OpenCV, for Pillow takes no such images.
        interpolation: In place of timm's.
        crop_pct: In place of timm's; over 1 leaves a black border.
        crop_mode: ``'center'``, ``'squash'`` or ``'border'``, in place of
            timm's.

    Returns:
        Plain dicts, ``LoadImageFromFile`` to ``PackInputs``.

    Raises:
        ValueError: If the name is unknown, or an option is out of range.
        OSError: If a folder or repository of weights is not there.
    """
    settings = data_source(model_name, in_channels).settings(
        use_test_size,
        img_size=img_size,
        interpolation=interpolation,
        crop_pct=crop_pct,
        crop_mode=crop_mode)
    return [
        _load(in_channels), *_test_steps(settings),
        dict(type='PackInputs')
    ]


def timm_train_pipeline(model_name: str,
                        *,
                        img_size: int | tuple[int, int] | None = None,
                        in_channels: int = 3,
                        interpolation: str | None = None,
                        scale: tuple[float, float] = (0.08, 1.0),
                        ratio: tuple[float, float] = (3 / 4, 4 / 3),
                        hflip: float = 0.5,
                        color_jitter: float = 0.4,
                        auto_augment: dict[str, Any] | None = None,
                        random_erasing: float = 0.) -> list[dict[str, Any]]:
    """The training transform of timm (``create_transform``) as a pipeline.

    Args:
        model_name: Any name that ``timm.create_model`` takes.
        img_size: Side, or height and width, of the input; None: timm's.
        in_channels: As in :func:`timm_test_pipeline`.
        interpolation: In place of timm's.
        scale: Range of the area that is cropped, as a share of the image.
        ratio: Range of its width over height.
        hflip: Probability of a horizontal flip.
        color_jitter: Strength of changes in brightness, contrast and
            saturation; 0 for none. As in timm, left out with
            ``auto_augment``.
        auto_augment: A stock transform such as ``dict(type='RandAugment',
            policies='timm_increasing', num_policies=2, magnitude_level=9)``.
        random_erasing: Probability of erasing a rectangle.

    Returns:
        Plain dicts, ``LoadImageFromFile`` to ``PackInputs``.

    Raises:
        ValueError: If the name is unknown, or an option is out of range.
    """
    settings = data_source(model_name, in_channels).settings(
        False, img_size=img_size, interpolation=interpolation)
    return [
        _load(in_channels),
        *_train_steps(
            settings,
            scale=scale,
            ratio=ratio,
            hflip=hflip,
            color_jitter=color_jitter,
            auto_augment=auto_augment,
            random_erasing=random_erasing),
        dict(type='PackInputs')
    ]


def _load(in_channels: int) -> dict[str, Any]:
    kinds = {1: 'grayscale', 3: 'color'}
    if in_channels in kinds:
        return dict(
            type='LoadImageFromFile',
            color_type=kinds[in_channels],
            imdecode_backend='pillow')
    return dict(type='LoadImageFromFile', color_type='unchanged')


def _resizer(settings: DataSettings) -> dict[str, str]:
    """Backend and interpolation of a stock transform."""
    pillow = len(settings.mean) in (1, 3)
    return dict(
        backend='pillow' if pillow else 'cv2',
        interpolation=settings.interpolation)


def _test_steps(settings: DataSettings) -> list[dict[str, Any]]:
    height, width = settings.size
    resized = settings.resized
    resizer = _resizer(settings)
    whole = dict(type='Resize', scale=resized[::-1], **resizer)
    crop = dict(type='CenterCrop', crop_size=(width, height))
    if settings.crop_mode == 'squash':
        return [whole, crop]
    if settings.crop_mode == 'border':
        fill = tuple(round(255 * v) for v in settings.mean)
        return [
            dict(whole, keep_ratio=True),
            # images are loaded as BGR
            dict(type='CenterPad', size=settings.size, pad_val=fill[::-1]),
            crop
        ]
    if resized[0] == resized[1]:
        steps = [
            dict(type='ResizeEdge', scale=resized[0], edge='short',
                 **resizer), crop
        ]
        if resized < settings.size:  # crop_pct over 1 (VOLO): black around
            steps.insert(1, dict(type='CenterPad', size=settings.size))
        return steps
    raise ValueError(
        f"crop_mode='center' takes a square img_size, got {settings.size}: "
        "use crop_mode='squash' or 'border'.")


def _train_steps(settings: DataSettings,
                 scale: tuple[float, float] = (0.08, 1.0),
                 ratio: tuple[float, float] = (3 / 4, 4 / 3),
                 hflip: float = 0.5,
                 color_jitter: float = 0.4,
                 auto_augment: dict[str, Any] | None = None,
                 random_erasing: float = 0.) -> list[dict[str, Any]]:
    steps = [
        dict(
            type='RandomResizedCrop',
            scale=settings.size,  # this one takes height first
            crop_ratio_range=tuple(scale),
            aspect_ratio_range=tuple(ratio),
            **_resizer(settings))
    ]
    if hflip:
        steps.append(
            dict(type='RandomFlip', prob=hflip, direction='horizontal'))
    if auto_augment:
        steps.append(dict(auto_augment))
    elif color_jitter and len(settings.mean) == 3:
        steps.append(
            dict(
                type='ColorJitter',
                brightness=color_jitter,
                contrast=color_jitter,
                saturation=color_jitter))
    if random_erasing:
        # timm erases normalised images with 0, which is the mean
        steps.append(
            dict(
                type='RandomErasing',
                erase_prob=random_erasing,
                mode='const',
                min_area_ratio=0.02,
                max_area_ratio=1 / 3,
                fill_color=[round(255 * v) for v in settings.mean[::-1]]))
    return steps


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
        self.size = tuple(size)
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
        # the host's registry, whatever scope a script has set
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
        return _test_steps(source.settings(test, **options))


@TRANSFORMS.register_module()
class TimmTrainTransform(_TimmTransform):
    """The training transform of timm between loading and packing.

    Args:
        model_name: As in :class:`TimmTestTransform`.
        in_channels: As there.
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
        return _train_steps(source.settings(False, **given), **options)
