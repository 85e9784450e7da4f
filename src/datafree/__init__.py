"""Compress a trained convolutional network with no data at all."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datafree.app import inspect, write_report
    from datafree.execution import on_ray, processes, serial
    from datafree.export import export_onnx, load, save
    from datafree.models import load_model
    from datafree.pipeline import compress
    from datafree.recipe import Recipe
    from datafree.run import Run, estimate, evaluate

__all__ = [
    "Recipe", "Run", "compress", "estimate", "evaluate", "export_onnx", "inspect", "load", "load_model", "on_ray",
    "processes", "save", "serial", "write_report",
]  # fmt: skip

ROOMS = {
    "Recipe": "recipe", "Run": "run", "compress": "pipeline", "estimate": "run", "evaluate": "run",
    "export_onnx": "export", "inspect": "app", "load": "export", "load_model": "models", "on_ray": "execution",
    "processes": "execution", "save": "export", "serial": "execution", "write_report": "app",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """A name once it is asked for: `datafree --help` need not load torch."""
    if name == "__version__":
        from importlib.metadata import version

        return version("datafree")
    if name not in ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(f"{__name__}.{ROOMS[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
