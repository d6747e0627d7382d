"""What of a test pipeline can be in a file, and what it does."""

from collections.abc import Iterator
from typing import Any

import mmengine.dataset
import numpy as np
import torch
from mmcv.transforms import CenterCrop, Compose, Resize
from mmpretrain.models import ClsDataPreprocessor
from torch import nn

from ..datasets import CenterPad, LoadTimmImage, TimmTestTransform

#: Those that ONNX has, too.
INTERPOLATIONS = ('bicubic', 'bilinear', 'nearest')


def pipeline_of(dataset: Any) -> Any:
    """The pipeline of a dataset, in a wrapper or not; None for none."""
    while not hasattr(dataset, 'pipeline'):
        inner = getattr(dataset, 'datasets', None) or [
            getattr(dataset, 'dataset', None)]
        if inner[0] is None:
            return None
        dataset = inner[0]
    return dataset.pipeline


def split_pipeline(pipeline: Any) -> tuple[list[Any], list[Any], Any]:
    """What of a test pipeline loads, what changes the image, what packs.

    Args:
        pipeline: Built, and bound to its network.

    Raises:
        ValueError: If it is not timm's: with the transform that is not.
    """
    from mmpretrain.datasets.transforms import PackInputs  # slow, and prints
    steps = list(_flat(pipeline))
    loading = steps[:1] if steps and isinstance(
        steps[0], LoadTimmImage) else []
    *images, pack = steps[len(loading):] or [None]
    for step in images:
        why = _unlike_timm(step)
        if why:
            raise _refused(why)
    if type(pack) is not PackInputs:
        raise _refused(f'it ends in {type(pack).__name__}')
    return loading, images, pack


def _flat(pipeline: Any) -> Iterator[Any]:
    for step in getattr(pipeline, 'transforms', ()):
        if isinstance(step, TimmTestTransform):
            step = step.steps()
        if type(step) in (Compose, mmengine.dataset.Compose):
            yield from _flat(step)
        else:
            yield step


def _unlike_timm(step: Any) -> str | None:
    """Why a transform is none of timm's for testing, if it is not."""
    from mmpretrain.datasets.transforms import ResizeEdge
    name = type(step).__name__
    if type(step) is CenterPad:
        return None
    if type(step) is CenterCrop:
        return f'{name} has auto_pad' if step.auto_pad else None
    if type(step) not in (Resize, ResizeEdge):
        return f'it has {name}'
    if step.backend != 'pillow':
        return f'{name} resizes by {step.backend}'
    if step.interpolation not in INTERPOLATIONS:
        return f'ONNX has no interpolation={step.interpolation!r}'
    if type(step) is ResizeEdge:
        return None if step.edge in ('short', 'long') else (
            f'{name} has edge={step.edge!r}')
    return None if step.scale else f'{name} has a scale_factor'


def _refused(why: str) -> ValueError:
    return ValueError(
        f"the test pipeline is not timm's ({why}): only LoadTimmImage, "
        'TimmTestTransform and PackInputs, or what timm_test_pipeline gives, '
        'can be in the file; with preprocessing=False it takes images that '
        'are preprocessed.')


def check_preprocessor(preprocessor: nn.Module) -> None:
    """Refuse a data preprocessor that does more than normalise.

    Raises:
        ValueError: With what it does.
    """
    if not isinstance(preprocessor, ClsDataPreprocessor):
        raise _refused(f'images are batched by '
                       f'{type(preprocessor).__name__}')
    if preprocessor.pad_size_divisor > 1:
        raise _refused(f'pad_size_divisor of {type(preprocessor).__name__} '
                       f'is {preprocessor.pad_size_divisor}')


def statistics(preprocessor: nn.Module, channels: int
               ) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per channel of the network, 0 to 255."""
    return tuple(
        np.broadcast_to(getattr(preprocessor, key, torch.tensor(value))
                        .cpu().float().numpy().ravel(), channels)
        for key, value in (('mean', 0.), ('std', 1.)))


def takes_rgb(preprocessor: nn.Module) -> bool:
    """Whether the network gets R, G, B: images are loaded as B, G, R."""
    return bool(getattr(preprocessor, 'to_rgb', False))
