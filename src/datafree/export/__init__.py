"""Files that run elsewhere: ONNX, and packed weights."""

from datafree.export.onnx.export import ExportCheck, export_onnx
from datafree.export.onnx.onnxruntime import session
from datafree.export.packed.packed import load, save

__all__ = [
    "ExportCheck",
    "export_onnx",
    "load",
    "save",
    "session",
]
