"""A classifier as a program of torch alone, by ``torch.export``."""

import copy
import io
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..files import written_whole
from ..messages import first_line
from .about import describe
from .checking import (
    EXACT_SCORES,
    Report,
    compare,
    compare_scores,
    in_batches,
    read_samples,
)
from .onnx import fixed_copy
from .scores import Scores, reference

#: What the description of a model is called in its file.
ABOUT = 'about.json'


def export_torch(model: nn.Module, dataset: Any, path: str | Path, *,
                 classes: Sequence[str] | None = None, cam: bool = False,
                 logits: bool = False, count: int | None = None) -> Report:
    """Write a classifier as a ``.pt2`` file, checked before it has its name.

    ``torch.export.load(path).module()`` takes float32 ``(N, C, h, w)`` as
    they leave the data preprocessor, h and w fixed, and gives ``(N, K)``
    scores, or with ``cam`` a tuple of these and the maps. The file
    ``about.json`` in it, which ``torch.export.load`` reads by
    ``extra_files``, has the keys of :class:`About`.

    Args:
        model: As of :func:`~.export_onnx`, as are the others.
        dataset: Images to check it on, with its test pipeline.
        path: The file; one that is there is replaced.
        classes: Names of the classes.
        cam: Whether the class activation maps are given, too.
        logits: Whether ``scores`` are logits.
        count: Number of images that it is checked on, 32 by default.

    Raises:
        ValueError: If the model cannot be in a file, torch cannot export it,
            or the file is too far off; there is none then.
        OSError: If it cannot be written.
    """
    model = copy.deepcopy(model).cpu().eval()
    samples = read_samples(dataset, model, count or 32, photos=False)
    module = Scores(model, cam).eval()
    scores, logit, *maps = reference(model, samples, module)
    about = describe(model, samples, 'logits' if logits else
                     module.activation, classes, scores.shape[1])
    module.outputs = ('logits' if logits else 'scores', *module.outputs[2:])
    program = _exported(module, samples.inputs[[0, -1]])
    with written_whole(path) as written:
        with open(written, 'wb') as file:
            torch.export.save(program, file, extra_files={
                ABOUT: json.dumps(asdict(about))})
        with open(written, 'rb') as file:
            loaded = torch.export.load(io.BytesIO(file.read())).module()

        def run(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            given = loaded(images)
            first, *others = given if cam else (given, )
            return (module.predicted(first) if logits else first,
                    first if logits else first.log(), *others)

        with torch.no_grad():
            found = in_batches(run, samples.inputs)
        # of probabilities there are no logits to compare
        exact = ((logit, *maps), found[1:]) if logits else (
            (scores, *maps), (found[0], *found[2:]))
        report = compare_scores(
            Report(len(scores), compare(*exact)), scores, found[0],
            (EXACT_SCORES, 0.))
        report.check('the torch program')
    return report


def _exported(module: nn.Module, example: torch.Tensor
              ) -> torch.export.ExportedProgram:
    """The program of a module, with a dynamic batch."""
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore')
            return torch.export.export(
                fixed_copy(module), (example, ), strict=False,
                dynamic_shapes=({0: torch.export.Dim('batch')}, ))
    except RuntimeError as error:
        raise ValueError(f'torch {torch.__version__} cannot export this: '
                         f'{first_line(error)} ({type(error).__name__})'
                         ) from error
