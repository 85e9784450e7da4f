"""Files that run elsewhere: ONNX, packed weights, and the table of both."""

from datafree.export.onnx.check import ExportCheck
from datafree.export.onnx.export import export_onnx
from datafree.export.onnx.onnxruntime import run_onnx
from datafree.export.packed.packed import load, save
from datafree.export.table import EXPORTERS, Exporter, Runtime, exporter_for, exporters_by_suffix
from datafree.export.written import NoOptions, Option, Written

__all__ = [
    "EXPORTERS",
    "ExportCheck",
    "Exporter",
    "NoOptions",
    "Option",
    "Runtime",
    "Written",
    "export_onnx",
    "exporter_for",
    "exporters_by_suffix",
    "load",
    "run_onnx",
    "save",
]
