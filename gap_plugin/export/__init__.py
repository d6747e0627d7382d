"""Files that run without this package: ONNX, torch's own program."""

from .onnx import open_onnx, write_onnx

__all__ = ['open_onnx', 'write_onnx']
