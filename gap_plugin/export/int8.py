"""A network in bytes: static quantisation by onnxruntime.

Weights are rounded to int8, each channel by itself, and activations to uint8,
by ranges that images have shown. The last layer, whose outputs are the
logits, stays as it is. Dynamic quantisation, which measures ranges at each
run, makes networks of convolutions four times slower.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from .onnx import check_installed

#: Images in a step of the measurement.
_BATCH = 16


def quantised(network: Any, images: torch.Tensor) -> Any:
    """Quantise a network.

    Args:
        network: An ONNX model of one input, whose outputs are ``scores`` and
            ``logits``.
        images: Its inputs, ``(N, C, h, w)``, which ranges are measured on.

    Returns:
        Another ONNX model with the same input and outputs.

    Raises:
        ImportError: If onnx or onnxruntime is not installed.
    """
    check_installed('onnx', 'onnxruntime')
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = network.graph.input[0].name

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches: Iterator = iter(images.split(_BATCH))

        def get_next(self) -> dict | None:
            batch = next(self._batches, None)
            return None if batch is None else {name: batch.numpy()}

    with TemporaryDirectory() as folder:
        prepared, done = Path(folder) / 'a.onnx', Path(folder) / 'b.onnx'
        quant_pre_process(network, str(prepared))
        last = [node.name for node in onnx.load(prepared).graph.node
                if {'scores', 'logits'} & {*node.output}]
        quantize_static(
            str(prepared), str(done), Images(), per_channel=True,
            quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8, nodes_to_exclude=last)
        return onnx.load(done)
