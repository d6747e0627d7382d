"""A test pipeline as nodes of an ONNX graph: a photo to a network's input.

Pillow's resizing is reached by one antialiased ``Resize`` of bytes whose
``exclude_outside`` leaves out what lies beyond the edge, as Pillow does:
onnxruntime then rounds between the two directions, to bytes, in Pillow's
order. Without antialiasing pixels are off by up to 170 of 255; of floats, in
one pass, by 9. Crops begin where Python's ``round`` puts them, which takes
halves to the even number, as ONNX's ``Round`` does.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import mmengine.dataset
import numpy as np
import torch
from mmcv.transforms import CenterCrop, Compose, Resize
from mmpretrain.datasets.transforms import PackInputs, ResizeEdge
from mmpretrain.models import ClsDataPreprocessor
from torch import nn

from ..datasets import CenterPad, LoadTimmImage, TimmTestTransform

_RESIZE = dict(
    bicubic=dict(mode='cubic', cubic_coeff_a=-0.5, antialias=1),
    bilinear=dict(mode='linear', antialias=1),
    nearest=dict(mode='nearest', nearest_mode='round_prefer_ceil'))


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
    name = type(step).__name__
    if type(step) is CenterPad:
        return None
    if type(step) is CenterCrop:
        return f'{name} has auto_pad' if step.auto_pad else None
    if type(step) not in (Resize, ResizeEdge):
        return f'it has {name}'
    if step.backend != 'pillow':
        return f'{name} resizes by {step.backend}'
    if step.interpolation not in _RESIZE:
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


class PhotoGraph:
    """Nodes from ``images``, uint8 ``(N, H, W, C)``, to ``pixels``.

    Args:
        steps: Transforms of :func:`split_pipeline`.
        preprocessor: The data preprocessor of the model.
        shape: ``(C, h, w)`` of the network's input, C 1 or 3.

    Attributes:
        nodes: ONNX's, in the order in which they run.
        output: Name of the last one's output, float32 ``(N, C, h, w)``.
    """

    def __init__(self, steps: list[Any], preprocessor: nn.Module,
                 shape: tuple[int, int, int]) -> None:
        self.nodes: list[Any] = []
        x = self._op('Transpose', 'images', perm=[0, 3, 1, 2])
        for step in steps:
            x = {Resize: self._resize, ResizeEdge: self._resize_edge,
                 CenterPad: self._pad, CenterCrop: self._crop}[type(step)](
                     step, x)
        # readers infer no shape behind a crop
        x = self._op('Reshape', x, self._integers(0, *shape))
        if shape[0] == 3 and not takes_rgb(preprocessor):
            x = self._op('Gather', x, self._integers(2, 1, 0), axis=1)
        mean, std = (self._constant(value.reshape(-1, 1, 1))
                     for value in statistics(preprocessor, shape[0]))
        x = self._op('Cast', x, to=1)  # float32
        self.output = self._op('Div', self._op('Sub', x, mean), std)

    def _op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        name = f'photo/{kind}_{len(self.nodes)}'
        self.nodes.append(helper.make_node(
            kind, inputs, [name], name, **attributes))
        return name

    def _constant(self, value: np.ndarray) -> str:
        from onnx import numpy_helper

        return self._op('Constant', value=numpy_helper.from_array(value))

    def _integers(self, *values: int) -> str:
        return self._constant(np.array(values, np.int64))

    def _sides(self, x: str) -> list[str]:
        """Height and width, each ``(1, )``."""
        shape = self._op('Shape', x)
        return [self._op('Slice', shape, self._integers(axis),
                         self._integers(axis + 1)) for axis in (2, 3)]

    def _resized(self, x: str, height: str, width: str, how: str) -> str:
        begin = self._op('Slice', self._op('Shape', x), self._integers(0),
                         self._integers(2))
        sizes = self._op('Concat', begin, height, width, axis=0)
        return self._op('Resize', x, '', '', sizes,
                        coordinate_transformation_mode='half_pixel',
                        exclude_outside=int(how != 'nearest'),
                        **_RESIZE[how])

    def _resize_edge(self, step: ResizeEdge, x: str) -> str:
        sides = self._sides(x)
        edge = self._op('Min' if step.edge == 'short' else 'Max', *sides)
        scale = self._integers(step.scale)
        # of positive integers int(a / b) is what ONNX's Div gives
        return self._resized(x, *(
            self._op('Div', self._op('Mul', side, scale), edge)
            for side in sides), step.interpolation)

    def _resize(self, step: Resize, x: str) -> str:
        width, height = step.scale
        if not step.keep_ratio:
            return self._resized(x, self._integers(height),
                                 self._integers(width), step.interpolation)
        number = partial(self._op, 'Cast', to=11)  # float64, as Python's
        sides = [number(side) for side in self._sides(x)]
        factor = self._op('Min', *(
            self._op('Div', self._constant(np.array([float(most)])),
                     self._op(extreme, *sides))
            for extreme, most in (('Max', max(step.scale)),
                                  ('Min', min(step.scale)))))
        half = self._constant(np.array([0.5]))
        return self._resized(x, *(
            self._op('Cast', self._op(
                'Add', self._op('Mul', side, factor), half), to=7)
            for side in sides), step.interpolation)

    def _pad(self, step: CenterPad, x: str) -> str:
        zero, two = self._integers(0), self._integers(2)
        over = [self._op('Max', zero, self._op(
            'Sub', self._integers(want), side))
            for want, side in zip(step.size, self._sides(x), strict=True)]
        before = [self._op('Div', extra, two) for extra in over]
        behind = [self._op('Sub', extra, first)
                  for extra, first in zip(over, before, strict=True)]
        none = self._integers(0, 0)
        pads = self._op('Concat', none, *before, none, *behind, axis=0)
        value = np.array(step.pad_val, np.int32).ravel()[::-1]  # as B, G, R
        value = self._constant(value.reshape(-1, 1, 1))
        # around the value: a Pad has one for all channels
        x = self._op('Sub', self._op('Cast', x, to=6), value)
        x = self._op('Add', self._op('Pad', x, pads), value)
        return self._op('Cast', x, to=2)  # uint8

    def _crop(self, step: CenterCrop, x: str) -> str:
        width, height = step.crop_size
        begins = []
        for want, side in zip((height, width), self._sides(x), strict=True):
            over = self._op('Sub', side, self._integers(want))
            half = self._op('Div', self._op('Cast', over, to=11),
                            self._constant(np.array([2.])))
            begins.append(self._op('Max', self._integers(0), self._op(
                'Cast', self._op('Round', half), to=7)))
        begin = self._op('Concat', *begins, axis=0)
        end = self._op('Add', begin, self._integers(height, width))
        return self._op('Slice', x, begin, end, self._integers(2, 3))
