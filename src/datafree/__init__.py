"""Compress a trained convolutional network with no data at all."""

from typing import Any

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


def __getattr__(name: str) -> Any:
    """`datafree.__version__`, looked up when it is asked for."""
    if name == "__version__":
        from importlib.metadata import version

        return version("datafree")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
