"""A classifier as one ONNX file that takes photos and gives scores."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..files import written_whole
from .about import About, describe
from .checking import (
    EXACT_SCORES,
    SCORES,
    Report,
    Samples,
    compare,
    compare_accuracy,
    compare_scores,
    in_batches,
    read_samples,
)
from .int8 import quantised
from .onnx import check_installed, open_onnx, session, set_metadata, traced
from .photo_graph import PhotoGraph, prepend
from .scores import Scores, reference


def export_onnx(model: nn.Module, dataset: Any, path: str | Path, *,
                classes: Sequence[str] | None = None,
                preprocessing: bool = True, cam: bool = False,
                logits: bool = False, int8: Any = None,
                count: int | None = None) -> Report:
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
        int8: A dataset, such as that of training with its test pipeline:
            weights and activations are rounded to bytes, by the ranges that
            64 of its images show. None for float32.
        count: Number of images that it is checked on, 32 by default; of an
            int8 file, whose accuracy is compared, 1000.

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
    if int8 is not None and cam:
        raise ValueError('int8 has no exact maps: leave cam=True out, or '
                         'int8.')
    model = copy.deepcopy(model).cpu().eval()
    count = count or (32 if int8 is None else 1000)
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
    if int8 is not None:
        network = quantised(network, read_samples(
            int8, model, 64, photos=False).inputs)
    if preprocessing:
        pixels = prepend(network, PhotoGraph(
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
        (found, ) = in_batches(
            lambda x: run(['scores'], dict(images=np.asarray(x))), given,
            8 if samples.photos is None else 1)
        if logits:
            found = module.predicted(torch.from_numpy(found)).numpy()
        report = compare_scores(
            report, expected[0], found,
            (SCORES if preprocessing else EXACT_SCORES, samples.average))
        if int8 is not None:
            report = compare_accuracy(report, expected[0], found,
                                      samples.labels)
        report.check()
    return report


def _compare_network(network: Any, expected: tuple, samples: Samples,
                     name: str, threads: int) -> Report:
    run = session(network.SerializeToString(), 'what torch exported',
                  threads).run
    found = in_batches(lambda x: run(None, {name: x.numpy()}),
                       samples.inputs)
    return Report(len(samples.inputs), compare(expected[1:], found[1:]))


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
