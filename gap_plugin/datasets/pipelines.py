"""timm's preprocessing, as lists of transforms, MMPretrain's but the loader.

Images are decoded and resized by Pillow, as timm does it: OpenCV's resizing
has no antialiasing and moves the accuracy of pretrained weights by up to two
points (timm issue 1324).
"""

from typing import Any

from ..arguments import check_arguments
from ..timm_network import DataSettings, data_source


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
        in_channels: Of the network, as ``LoadTimmImage`` takes it; others
            than 1 and 3 are resized by OpenCV, for Pillow takes no such
            images.
        interpolation: In place of timm's.
        crop_pct: In place of timm's; over 1 leaves a black border.
        crop_mode: ``'center'``, ``'squash'`` or ``'border'``, in place of
            timm's.

    Returns:
        Plain dicts, ``LoadTimmImage`` to ``PackInputs``.

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
        dict(type='LoadTimmImage', in_channels=in_channels),
        *test_steps(settings),
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
        in_channels: Of the network, as ``LoadTimmImage`` takes it; others
            than 1 and 3 are resized by OpenCV, for Pillow takes no such
            images.
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
        Plain dicts, ``LoadTimmImage`` to ``PackInputs``.

    Raises:
        ValueError: If the name is unknown, or an option is out of range.
    """
    settings = data_source(model_name, in_channels).settings(
        False, img_size=img_size, interpolation=interpolation)
    return [
        dict(type='LoadTimmImage', in_channels=in_channels),
        *train_steps(
            settings,
            scale=scale,
            ratio=ratio,
            hflip=hflip,
            color_jitter=color_jitter,
            auto_augment=auto_augment,
            random_erasing=random_erasing),
        dict(type='PackInputs')
    ]


def _resizer(settings: DataSettings) -> dict[str, str]:
    """Backend and interpolation of a stock transform."""
    pillow = len(settings.mean) in (1, 3)
    return dict(
        backend='pillow' if pillow else 'cv2',
        interpolation=settings.interpolation)


def test_steps(settings: DataSettings) -> list[dict[str, Any]]:
    """Stock transforms of an evaluation, between loading and packing."""
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


def train_steps(settings: DataSettings,
                scale: tuple[float, float] = (0.08, 1.0),
                ratio: tuple[float, float] = (3 / 4, 4 / 3),
                hflip: float = 0.5,
                color_jitter: float = 0.4,
                auto_augment: dict[str, Any] | None = None,
                random_erasing: float = 0.) -> list[dict[str, Any]]:
    """Stock transforms of training, between loading and packing."""
    check_arguments(
        'the preprocessing', limits=dict(scale=scale, ratio=ratio),
        share=dict(hflip=hflip, random_erasing=random_erasing),
        amount=dict(color_jitter=color_jitter),
        transform_or_none=dict(auto_augment=auto_augment))
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
