"""Files that run without this package: ONNX, torch's own program.

In the order in which they build on each other: :mod:`.onnx` (a module as a
file, and back), :mod:`.preprocessing` (a test pipeline as a graph),
:mod:`.checking` (whether a file gives what the model gives),
:mod:`.classifier` (a model as a file that takes photos).
"""

from .classifier import About, export_onnx
from .onnx import open_onnx, read_metadata, write_onnx

__all__ = ['About', 'export_onnx', 'open_onnx', 'read_metadata', 'write_onnx']
