"""A module as an ONNX file, by torch's current exporter; and back."""

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..files import written_whole
from ..messages import first_line

if TYPE_CHECKING:
    import onnx
    import onnxruntime

_INSTALL = 'pip install "gap_plugin[export]"'
#: Bytes that one protobuf, and so a file without others beside it, may have.
_LIMIT = 2**31 - 1


#: Attributes of timm's layers that choose a way of computing the same which
#: cannot be exported: torch's fused attention, which some layers (those of
#: relative positions) call so that it cannot, and gradient checkpointing.
_CHOICES = ('fused_attn', 'grad_checkpointing')


def fixed_copy(module: nn.Module) -> nn.Module:
    """A copy to trace: on the CPU, in eval mode, its attention written out.

    It gives the same up to rounding.
    """
    module = copy.deepcopy(module).cpu().eval()
    for part in module.modules():
        for name in _CHOICES:
            if hasattr(part, name):
                setattr(part, name, False)
    return module


def check_installed(*modules: str) -> None:
    """Refuse to go on without the libraries of ONNX.

    Raises:
        ImportError: With the command that installs them.
    """
    for name in modules:
        try:
            __import__(name)
        except ImportError as error:
            raise ImportError(f'ONNX files need {error.name or name}: '
                              f'{_INSTALL}') from None


def traced(module: nn.Module, example: tuple[torch.Tensor, ...],
           inputs: Sequence[str] = ('images', ),
           outputs: Sequence[str] = ('scores', ),
           any_batch: bool = True) -> 'onnx.ModelProto':
    """A module as an ONNX model.

    Args:
        module: As of :func:`write_onnx`, as are the others.
        example: Its inputs.
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        any_batch: Whether batches have any size, or that of ``example``,
            which takes half the time.

    Raises:
        ImportError: If onnx or onnxscript is not installed.
        ValueError: If torch cannot export it, with torch's reason, or it is
            too large for a file.
    """
    check_installed('onnx', 'onnxscript')
    import onnx

    module, example = fixed_copy(module), tuple(x.cpu() for x in example)
    sizes = ({0: torch.export.Dim('batch')}, ) * len(example)
    export = partial(_exported, module, example, inputs, outputs,
                     sizes if any_batch else None)
    model = export()
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError:
        # onnxscript 0.7 loses a bound where it joins two clips (ghostnet)
        model = export(optimize=False)
    return model


def _exported(module: nn.Module, example: tuple[torch.Tensor, ...],
              inputs: Sequence[str], outputs: Sequence[str],
              sizes: tuple | None, optimize: bool = True
              ) -> 'onnx.ModelProto':
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore')
            program = torch.onnx.export(
                module, example,
                input_names=list(inputs), output_names=list(outputs),
                dynamic_shapes=sizes, optimize=optimize,
                dynamo=True, verbose=False, external_data=False)
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ValueError(
            f'torch {torch.__version__} cannot export this to ONNX: '
            f'{first_line(cause)} ({type(cause).__name__})') from error
    size = sum(value.const_value.nbytes
               for value in program.model.graph.initializers.values()
               if value.const_value is not None)
    if size >= _LIMIT:
        raise ValueError(f'its weights are {size / 1e9:.1f} GB, and an ONNX '
                         'file holds 2.1 GB at most: take a smaller network.')
    return program.model_proto


def write_onnx(module: nn.Module, example: tuple[torch.Tensor, ...],
               path: str | Path, *, inputs: Sequence[str] = ('images', ),
               outputs: Sequence[str] = ('scores', ),
               metadata: Mapping[str, str] | None = None) -> None:
    """Write a module as one ONNX file, whole, with a dynamic batch.

    The module stays as it is; a copy of it is traced.

    Args:
        module: What maps ``example`` to a tensor or a tuple of them.
        example: Its inputs, two or more in a batch. Other dimensions than
            the first are fixed.
        path: The file; one that is there is replaced.
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        metadata: Key -> text, which readers of the file find in it.

    Raises:
        ImportError: If onnx or onnxscript is not installed.
        ValueError: If torch cannot export it, with torch's reason, or it is
            too large for a file.
        OSError: If the file cannot be written.
    """
    model = traced(module, example, inputs, outputs)
    set_metadata(model, metadata or {})
    with written_whole(path) as written:
        written.write_bytes(model.SerializeToString())


def set_metadata(model: 'onnx.ModelProto',
                 metadata: Mapping[str, str]) -> None:
    """Give a model these texts, in place of those that it has."""
    import onnx

    onnx.helper.set_model_props(model, dict(metadata))


def open_onnx(path: str | Path, threads: int | None = None
              ) -> 'onnxruntime.InferenceSession':
    """Open an ONNX file with onnxruntime, on the CPU.

    Args:
        path: The file.
        threads: That it computes with; None for one a core.

    Raises:
        ImportError: If onnxruntime is not installed.
        FileNotFoundError: If there is no such file.
        ValueError: If it is none that onnxruntime can run.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{str(path)!r} is not a file.')
    return session(str(path), repr(str(path)), threads)


def session(model: str | bytes, name: str, threads: int | None = None
            ) -> 'onnxruntime.InferenceSession':
    """A session of onnxruntime, on the CPU, that prints nothing.

    Args:
        model: The name of a file, or what is in it.
        name: What errors call it.
        threads: That it computes with; None for one a core.

    Raises:
        ImportError: If onnxruntime is not installed.
        ValueError: If onnxruntime cannot run it.
    """
    check_installed('onnxruntime')
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # of this session alone: errors
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(
            model, options, providers=['CPUExecutionProvider'])
    except Exception as error:  # noqa: BLE001 of classes of its own
        raise ValueError(
            f'onnxruntime cannot run {name}, which may be no ONNX file, or a '
            f'damaged one ({first_line(error)}).') from None


def read_metadata(session: 'onnxruntime.InferenceSession') -> dict[str, Any]:
    """What a file says of itself, where that is JSON; nothing is evaluated.

    Files of :func:`~gap_plugin.export.export_onnx` have the keys of
    :class:`~gap_plugin.export.About`.
    """
    found = {}
    for key, text in session.get_modelmeta().custom_metadata_map.items():
        with suppress(ValueError):
            found[key] = json.loads(text)
    return found
