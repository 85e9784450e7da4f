"""Compress a trained convolutional network with no data at all."""

from datafree.app import inspect
from datafree.execution import processes, serial
from datafree.export import export_onnx, load, save
from datafree.models import load_model
from datafree.pipeline import compress
from datafree.recipe import Recipe
from datafree.run import Run, estimate, evaluate

__all__ = [
    "Recipe", "Run", "compress", "estimate", "evaluate", "export_onnx", "inspect", "load", "load_model", "processes",
    "save", "serial",
]  # fmt: skip
