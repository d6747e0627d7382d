"""A module as an ONNX file, by torch's current exporter; and back."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..files import written_whole
from ..messages import first_line

if TYPE_CHECKING:
    import onnxruntime

_INSTALL = 'pip install "gap_plugin[export]"'
#: Bytes that one protobuf, and so a file without others beside it, may have.
_LIMIT = 2**31 - 1


def fixed_copy(module: nn.Module) -> nn.Module:
    """A copy to trace: on the CPU, in eval mode, its attention written out.

    timm's attention calls torch's fused kernel where a layer's
    ``fused_attn`` says so, which some layers cannot be exported with (those
    of relative positions). Written out, it gives the same up to rounding.
    """
    module = copy.deepcopy(module).cpu().eval()
    for part in module.modules():
        if hasattr(part, 'fused_attn'):
            part.fused_attn = False
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


def onnx_program(module: nn.Module, example: tuple[torch.Tensor, ...],
                 inputs: Sequence[str] = ('images', ),
                 outputs: Sequence[str] = ('scores', ),
                 dynamic: Mapping[int, str] | None = None
                 ) -> 'torch.onnx.ONNXProgram':
    """Trace a module, which stays as it is.

    Args:
        module: What maps ``example`` to a tensor or a tuple of them.
        example: Its inputs, two or more of each dynamic dimension.
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        dynamic: Dimensions of every input that may be of any size, and what
            they are called; the batch by default.

    Raises:
        ImportError: If onnx or onnxscript is not installed.
        ValueError: If torch cannot export it, with torch's reason.
    """
    check_installed('onnx', 'onnxscript')
    # one object for a name, or torch takes them for dimensions of their own
    sizes = {axis: torch.export.Dim(name) for axis, name in (
        dynamic or {0: 'batch'}).items()}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore')
            return torch.onnx.export(
                fixed_copy(module), tuple(x.cpu() for x in example),
                input_names=list(inputs), output_names=list(outputs),
                dynamic_shapes=(sizes, ) * len(example),
                dynamo=True, verbose=False, external_data=False)
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ValueError(
            f'torch {torch.__version__} cannot export this to ONNX: '
            f'{first_line(cause)} ({type(cause).__name__})') from error


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
    program = onnx_program(module, example, inputs, outputs)
    program.model.metadata_props.update(metadata or {})
    size = sum(value.const_value.nbytes
               for value in program.model.graph.initializers.values()
               if value.const_value is not None)
    if size >= _LIMIT:
        raise ValueError(f'its weights are {size / 1e9:.1f} GB, and an ONNX '
                         'file holds 2.1 GB at most: take a smaller network.')
    with written_whole(path) as written:
        program.save(str(written), external_data=False)


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
    check_installed('onnxruntime')
    import onnxruntime

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{str(path)!r} is not a file.')
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # of this session alone: errors
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=['CPUExecutionProvider'])
    except Exception as error:  # noqa: BLE001 of classes of its own
        raise ValueError(
            f'onnxruntime cannot run {str(path)!r}, which may be no ONNX '
            f'file, or a damaged one ({first_line(error)}).') from None
