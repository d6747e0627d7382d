"""A test pipeline as settings of timm's preprocessing."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from mmcv.transforms import CenterCrop, Resize
from mmpretrain.registry import TRANSFORMS
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import nn

from ..datasets.pipelines import test_steps
from ..timm_network import DataSettings
from .checking import PIXELS, Samples, read_samples
from .pipeline import statistics, takes_rgb


def preprocessing_of(
        model: nn.Module, dataset: Any, count: int
) -> tuple[Samples | None, DataSettings, list[str]]:
    """Images of the data, the settings that they follow, what is left out."""
    backbone = model.backbone
    channels, own = backbone.in_channels, backbone.data_source.settings(True)
    if channels == 3 and not takes_rgb(model.data_preprocessor):
        raise ValueError('the network takes B, G, R (to_rgb=False of the data '
                         'preprocessor), and timm gives R, G, B.')
    for key, value in zip(('mean', 'std'), statistics(
            model.data_preprocessor, channels), strict=True):
        exact = tuple(float(each) / 255 for each in value)
        if any(abs(a - b) > 1e-6 for a, b in zip(
                exact, getattr(own, key), strict=True)):
            own = replace(own, **{key: exact})
    if dataset is None:
        return None, own, ["there are no images of the data: the "
                           "preprocessing is the network's own"]
    try:
        samples = read_samples(dataset, model, count, True)
        found = settings_of(samples.steps, own)
    except ValueError:  # another pipeline
        samples, found = read_samples(dataset, model, count, False), None
    if found is not None:
        return samples, found, []
    size = tuple(int(side) for side in samples.inputs.shape[2:])
    return replace(samples, photos=None), replace(own, size=size), [
        "timm's preprocessing has no form of the test pipeline: config.json "
        f"has that of the network, at {size[0]} x {size[1]}"]


def check_pixels(network: nn.Module, samples: Samples | None) -> float | None:
    """How far timm's preprocessing is from the config's, 0 to 255.

    Raises:
        ValueError: If it is too far.
    """
    if samples is None or samples.photos is None:
        return None
    settings = resolve_data_config({}, pretrained_cfg=network.pretrained_cfg)
    transform = create_transform(**settings, is_training=False)
    std = 255 * torch.tensor(settings['std'])[:, None, None]
    worst = max(
        float(((transform(Image.fromarray(photo.squeeze())) - wanted)
               * std).abs().max())
        for photo, wanted in zip(samples.photos, samples.inputs,
                                 strict=True))
    if not worst <= PIXELS:
        raise ValueError(
            f"timm's preprocessing gives pixels that differ by {worst:.3g} "
            f'of 255, {PIXELS} at most: there is no folder.')
    return round(worst, 2)


def settings_of(steps: Sequence[Any], own: DataSettings
                ) -> DataSettings | None:
    """Settings whose transforms are these.

    Args:
        steps: Transforms between loading and packing.
        own: Those of the network, with the mean and std of the model.

    Returns:
        None if timm's preprocessing has no such settings.
    """
    for found in _guesses(steps, own):
        try:
            made = [TRANSFORMS.build(step) for step in test_steps(found)]
        except ValueError:
            continue
        if [(type(step), vars(step)) for step in made] == [
                (type(step), vars(step)) for step in steps]:
            return found
    return None


def _guesses(steps: Sequence[Any], own: DataSettings
             ) -> Iterator[DataSettings]:
    """What they may be, by the first and the last one."""
    from mmpretrain.datasets.transforms import ResizeEdge
    if not steps or type(steps[-1]) is not CenterCrop:
        return
    first, (width, height) = steps[0], steps[-1].crop_size
    if type(first) is ResizeEdge:
        mode, resized = 'center', (first.scale, first.scale)
    elif type(first) is Resize and first.scale:
        mode = 'border' if first.keep_ratio else 'squash'
        resized = first.scale[::-1]
    else:
        return
    found = replace(own, size=(height, width), crop_mode=mode,
                    interpolation=first.interpolation)
    largest = min(side / of for side, of in zip(
        found.size, resized, strict=True))
    # in timm's own digits, in few digits, in all
    for crop_pct in (own.crop_pct, round(largest, 3), largest,
                     math.nextafter(largest, 0)):
        if crop_pct > 0:
            yield replace(found, crop_pct=crop_pct)
