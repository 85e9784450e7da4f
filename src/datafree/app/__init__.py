"""What a person sees: the command line, its tables, folders of images, timings."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datafree.app.inspection import inspect

__all__ = [
    "inspect",
]


def __getattr__(name: str) -> Any:
    """`inspect` once it is asked for: the command line need not load torch to show its help."""
    if name == "inspect":
        from datafree.app.inspection import inspect

        return inspect
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
