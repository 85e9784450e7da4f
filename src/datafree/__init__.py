"""Compress a trained convolutional network with no data at all."""

from datafree.estimate import estimate
from datafree.export.onnx import export_onnx
from datafree.export.packed import load, save
from datafree.inspect import inspect
from datafree.models import load_model
from datafree.pipeline import compress
from datafree.pools import processes, serial
from datafree.recipe import Recipe
from datafree.run import Run, evaluate

__all__ = [
    "Recipe", "Run", "compress", "estimate", "evaluate", "export_onnx", "inspect", "load", "load_model", "processes",
    "save", "serial",
]  # fmt: skip
