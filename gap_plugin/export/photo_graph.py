"""A test pipeline as nodes of an ONNX graph: a photo to a network's input.

Pillow's resizing is reached by two antialiased ``Resize`` of bytes, one a
direction, in Pillow's order, whose ``exclude_outside`` leaves out what lies
beyond the edge, as Pillow does. Without antialiasing pixels are off by up to
170 of 255; of floats, in one pass, by 9. Crops begin where Python's ``round``
puts them, which takes halves to the even number, as ONNX's ``Round`` does.
"""

import copy
from functools import cache, partial
from typing import Any

import numpy as np
from mmcv.transforms import CenterCrop, Resize
from PIL import Image
from torch import nn

from ..datasets import CenterPad
from .pipeline import statistics, takes_rgb

_RESIZE = dict(
    bicubic=dict(mode='cubic', cubic_coeff_a=-0.5, antialias=1),
    bilinear=dict(mode='linear', antialias=1))


@cache
def vertical_first() -> bool:
    """Whether the Pillow that is installed may resize columns first.

    Old ones resize rows first, always. Those of 2026 (13.0) begin with the
    columns where that leaves out more: of an image ``H x W`` that becomes
    ``h x w``, with ``H - h > 0`` and ``H - h > 2 (W - w)``. Their order shows,
    for the numbers between are rounded to bytes.
    """
    noise = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    image = Image.fromarray(noise)
    columns = image.resize((32, 9), Image.Resampling.BICUBIC)
    return (image.resize((40, 9), Image.Resampling.BICUBIC).tobytes()
            == columns.resize((40, 9), Image.Resampling.BICUBIC).tobytes())


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
            x = {Resize: self._resize, CenterPad: self._pad,
                 CenterCrop: self._crop}.get(
                     type(step), self._resize_edge)(step, x)
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
        """Resize as Pillow does: one direction, bytes, then the other."""
        if how == 'nearest':
            sides = self._sides(x)
            for axis, side, size in zip((2, 3), sides, (height, width),
                                        strict=True):
                x = self._op('Gather', x, self._places(side, size), axis=axis)
            return x
        first = self._sides(x)[0], width
        if vertical_first():
            first = self._first(x, height, width)
        return self._pass(self._pass(x, *first, how), height, width, how)

    def _places(self, side: str, size: str) -> str:
        """Which of the pixels are the nearest: added up, as by Pillow."""
        step = self._op('Div', *(self._op('Cast', number, to=11)
                                 for number in (side, size)))  # float64
        half = self._op('Mul', step, self._constant(np.array([0.5])))
        others = self._op('Expand', step, self._op(
            'Sub', size, self._integers(1)))
        places = self._op('CumSum', self._op('Concat', half, others, axis=0),
                          self._constant(np.array(0)))
        return self._op('Min', self._op('Cast', places, to=7),  # int64
                        self._op('Sub', side, self._integers(1)))

    def _first(self, x: str, height: str, width: str) -> list[str]:
        """The size after the first direction, of a Pillow that chooses."""
        sides = self._sides(x)
        rows, columns = (self._op('Sub', old, new) for old, new in zip(
            sides, (height, width), strict=True))
        vertical = self._op(
            'And', self._op('Greater', rows, self._integers(0)),
            self._op('Greater', rows, self._op('Add', columns, columns)))
        return [self._op('Where', vertical, height, sides[0]),
                self._op('Where', vertical, sides[1], width)]

    def _pass(self, x: str, height: str, width: str, how: str) -> str:
        begin = self._op('Slice', self._op('Shape', x), self._integers(0),
                         self._integers(2))
        sizes = self._op('Concat', begin, height, width, axis=0)
        return self._op('Resize', x, '', '', sizes,
                        coordinate_transformation_mode='half_pixel',
                        exclude_outside=1, **_RESIZE[how])

    def _resize_edge(self, step: Any, x: str) -> str:
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


def prepend(network: Any, photos: PhotoGraph) -> Any:
    """Put the preprocessing ahead of a network.

    Args:
        network: An ONNX model of one input, ``pixels``; changed in place.
        photos: The preprocessing.

    Returns:
        The preprocessing alone, as an ONNX model.
    """
    from onnx import ModelProto, TensorProto, checker, helper

    shape = list(network.graph.input[0].type.tensor_type.shape.dim)
    channels = shape[1].dim_value
    images = helper.make_tensor_value_info(
        'images', TensorProto.UINT8, ['batch', 'height', 'width', channels])
    named = helper.make_node('Identity', [photos.output], ['pixels'],
                             'photo/pixels')
    alone = ModelProto(ir_version=network.ir_version,
                       opset_import=network.opset_import)
    alone.graph.CopyFrom(helper.make_graph(
        [*photos.nodes, named], 'photo', [images],
        [copy.deepcopy(network.graph.input[0])]))
    nodes = [*photos.nodes, named, *network.graph.node]
    del network.graph.input[:], network.graph.node[:]
    network.graph.input.append(images)
    network.graph.node.extend(nodes)
    for model in (alone, network):
        checker.check_model(model)
    return alone
