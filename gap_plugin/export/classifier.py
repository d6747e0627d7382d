"""A classifier as one ONNX file that takes photos and gives scores."""

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmpretrain.models.heads import MultiLabelClsHead
from torch import nn

from ..files import written_whole
from ..host import versions
from ..version import __version__
from ..visualization.class_activation import fold
from .checking import (
    EXACT_SCORES,
    SCORES,
    Report,
    Samples,
    compare,
    in_batches,
    other_top1,
    read_samples,
)
from .onnx import check_installed, open_onnx, session, set_metadata, traced
from .preprocessing import PhotoGraph, statistics, takes_rgb


@dataclass(frozen=True)
class About:
    """What a file says of itself: its metadata, each value as JSON.

    Attributes:
        classes: Names of the classes; None if they are not known.
        network: Name of the network.
        input: ``'photos'``: uint8 ``(N, H, W, C)`` of any size, turned
            upright; ``'normalised'``: float32 ``(N, C, h, w)``, as they
            leave the data preprocessor.
        channels: Channels of the image.
        channel_order: ``'RGB'`` or ``'BGR'`` of the input; ``''`` where
            there are not three.
        image_size: Height and width of the network's input.
        mean: Per channel, 0 to 255, of the network's input.
        std: Per channel, of values from 0 to 255.
        scores: What the first output holds: ``'softmax'``, ``'sigmoid'`` (of
            a multi-label head) or ``'logits'``.
        versions: Of what it was made by.
    """

    classes: list[str] | None
    network: str
    input: str
    channels: int
    channel_order: str
    image_size: list[int]
    mean: list[float]
    std: list[float]
    scores: str
    versions: dict[str, str]

    def metadata(self) -> dict[str, str]:
        """Key -> JSON, in ASCII."""
        return {key: json.dumps(value) for key, value in asdict(self).items()}


class Scores(nn.Module):
    """A classifier as a function of its images, to be traced.

    Args:
        model: The classifier.
        cam: Whether the class activation maps are given, too.

    Attributes:
        activation: ``'softmax'`` or ``'sigmoid'``, as the head predicts.

    Raises:
        ValueError: If it has no exact map, with the part that is why.
    """

    def __init__(self, model: nn.Module, cam: bool = False) -> None:
        super().__init__()
        self.model = model
        self.activation = 'sigmoid' if isinstance(
            getattr(model, 'head', None), MultiLabelClsHead) else 'softmax'
        self.folded = fold(model) if cam else None

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what it gives."""
        return ('scores', 'logits') + (
            () if self.folded is None else ('maps', ))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Scores ``(N, K)``, logits, and maps ``(N, K, h, w)`` in logits.

        Args:
            images: As they leave the data preprocessor.
        """
        if self.folded is None:
            logits, maps = self.model(images, mode='tensor'), ()
        else:
            features = self.model.backbone(images)
            maps = (self.folded.maps(features), )
            if self.model.with_neck:
                features = self.model.neck(features)
            logits = self.model.head(features)
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
            raise ValueError(
                f'{type(self.model).__name__} gives no logits (N, K) of '
                'images: a file is of a classifier with one head.')
        scores = (logits.sigmoid() if self.activation == 'sigmoid' else
                  logits.softmax(1))
        return scores, logits, *maps


def describe(model: nn.Module, samples: Samples, scores: str,
             classes: Sequence[str] | None, width: int) -> About:
    """What the file of a model says of itself.

    Args:
        model: The classifier.
        samples: Images that it takes.
        scores: As of :class:`About`.
        classes: Names of its classes, None if they are not known.
        width: How many it tells apart.

    Raises:
        ValueError: If the names are not as many.
    """
    if classes is not None and len(classes) != width:
        raise ValueError(f'there are {len(classes)} names of classes, and '
                         f'the model has {width}: give it those of its '
                         'training.')
    channels, *size = samples.inputs.shape[1:]
    mean, std = statistics(model.data_preprocessor, channels)
    order = '' if channels != 3 else 'RGB' if (
        samples.photos is not None
        or takes_rgb(model.data_preprocessor)) else 'BGR'
    backbone = getattr(model, 'backbone', model)
    return About(
        None if classes is None else [str(name) for name in classes],
        getattr(backbone, 'model_name', type(backbone).__name__),
        'normalised' if samples.photos is None else 'photos',
        channels, order, [int(side) for side in size], mean.tolist(),
        std.tolist(), scores, dict(versions(), gap_plugin=__version__))


def reference(model: nn.Module, samples: Samples, module: Scores
              ) -> tuple[np.ndarray, ...]:
    """Scores, logits and maps of the model, which predicts the same scores.

    Raises:
        ValueError: If it predicts others: its head is none that is known.
    """
    with torch.no_grad():
        expected = in_batches(module, samples.inputs)
        predicted = [sample.pred_score for sample in model(
            samples.inputs[:8], mode='predict')]
    if not np.allclose(expected[0][:8], torch.stack(predicted), atol=1e-5):
        raise ValueError(
            f'{type(model.head).__name__} predicts other scores than the '
            f'{module.activation} of its logits: it is none that can be '
            'exported.')
    return expected


def export_onnx(model: nn.Module, dataset: Any, path: str | Path, *,
                classes: Sequence[str] | None = None,
                preprocessing: bool = True, cam: bool = False,
                logits: bool = False, count: int = 32) -> Report:
    """Write a classifier as one ONNX file, checked before it has its name.

    The first output is ``scores``, ``(N, K)``; what the file says of itself
    is in its metadata, :class:`About`. The model stays as it is.

    Args:
        model: An ``ImageClassifier`` of one head, ours or stock.
        dataset: Images to check it on, with its test pipeline.
        path: The file; one that is there is replaced.
        classes: Names of the classes.
        preprocessing: Whether the input is ``images`` uint8 ``(N, H, W, C)``
            of any height and width, N of the same, turned upright, in the
            order R, G, B, or grey; with the test pipeline in the graph. Else
            it is float32 ``(N, C, h, w)`` as it leaves the data
            preprocessor, h and w fixed.
        cam: Whether the class activation maps are the second output,
            ``maps``, ``(N, K, h, w)`` in logits.
        logits: Whether ``scores`` are logits, in place of the probabilities
            that the head predicts.
        count: Number of images that it is checked on.

    Returns:
        How far it is from the model: within :data:`~.checking.NETWORK` and
        the other limits.

    Raises:
        ImportError: If onnx, onnxscript or onnxruntime is not installed.
        ValueError: If the pipeline or the model cannot be in a file, torch
            cannot export it, or the file is too far off; there is none then.
        OSError: If it cannot be written.
    """
    check_installed('onnx', 'onnxscript', 'onnxruntime')
    model = copy.deepcopy(model).cpu().eval()
    samples = read_samples(dataset, model, count, preprocessing)
    module = Scores(model, cam).eval()
    expected = reference(model, samples, module)
    about = describe(model, samples, 'logits' if logits else
                     module.activation, classes, expected[0].shape[1])
    example = samples.inputs[[0, -1]]
    name = 'pixels' if preprocessing else 'images'
    network = traced(module, (example, ), (name, ), module.outputs)
    threads = torch.get_num_threads()
    report = _compare_network(network, expected, samples, name, threads)
    if preprocessing:
        pixels = _prepend(network, PhotoGraph(
            samples.steps, model.data_preprocessor,
            tuple(samples.inputs.shape[1:])))
        report = _compare_pixels(pixels, report, samples, about, threads)
    _choose_outputs(network, logits)
    set_metadata(network, about.metadata())
    with written_whole(path) as written:
        written.write_bytes(network.SerializeToString())
        run = open_onnx(written, threads).run
        given = samples.inputs.numpy() if samples.photos is None else (
            samples.photos)
        found = in_batches(
            lambda x: run(['scores'], dict(images=np.asarray(x))), given,
            8 if samples.photos is None else 1)[0]
        wanted = expected[1] if logits else expected[0]
        limit = SCORES if preprocessing else EXACT_SCORES
        scores, top1 = (wanted, found) if not logits else (
            _softmax(wanted), _softmax(found))
        report = replace(
            report, scores=float(np.abs(scores - top1).max()),
            top1=other_top1(scores, top1, limit),
            limits=(limit, samples.average))
        report.check()
    return report


def _softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).softmax(1).numpy()


def _compare_network(network: Any, expected: tuple, samples: Samples,
                     name: str, threads: int) -> Report:
    run = session(network.SerializeToString(), 'what torch exported',
                  threads).run
    found = in_batches(lambda x: run(None, {name: x.numpy()}),
                       samples.inputs)
    return Report(len(samples.inputs), compare(expected[1:], found[1:]),
                  float('nan'), 0)


def _compare_pixels(pixels: Any, report: Report, samples: Samples,
                    about: About, threads: int) -> Report:
    """Preprocess alone, an image at a time."""
    run = session(pixels.SerializeToString(), 'the preprocessing',
                  threads).run
    std = np.array(about.std)[:, None, None]
    differences = [np.abs(run(None, dict(images=photo[None]))[0][0]
                          - wanted.numpy()) * std
                   for photo, wanted in zip(samples.photos, samples.inputs,
                                            strict=True)]
    return replace(
        report, pixels=float(np.round(np.max(differences), 2)),
        average=float(np.mean(differences)))


def _prepend(network: Any, photos: PhotoGraph) -> Any:
    """Put the preprocessing ahead of a network; give it alone as well."""
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


def _choose_outputs(network: Any, logits: bool) -> None:
    """Leave ``scores``, and ``maps`` where there are; in this order."""
    scores, logit, *maps = network.graph.output
    if logits:  # a name for them: the nodes that make scores are left out
        from onnx import helper

        kept = [node for node in network.graph.node
                if 'scores' not in node.output]
        del network.graph.node[:]
        network.graph.node.extend([*kept, helper.make_node(
            'Identity', ['logits'], ['scores'], 'scores')])
    chosen = [scores, *maps]
    del network.graph.output[:]
    network.graph.output.extend(chosen)
