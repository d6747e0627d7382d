"""Files that run without this package: ONNX, torch's own program.

In the order in which they build on each other: :mod:`.onnx` (a module as a
file, and back), :mod:`.pipeline` (what of a test pipeline can be in it),
:mod:`.photo_graph` (that pipeline as a graph), :mod:`.checking` (whether a
file gives what the model gives), :mod:`.about` (what it says of the model),
:mod:`.scores` (a model as a function of images), :mod:`.int8` (in bytes),
:mod:`.classifier` (a model
as a file that takes photos), :mod:`.torch_program` (as a program of torch).
"""

from .about import About
from .classifier import export_onnx
from .onnx import open_onnx, read_metadata, write_onnx
from .torch_program import export_torch

__all__ = ['About', 'export_onnx', 'export_torch', 'open_onnx',
           'read_metadata', 'write_onnx']
