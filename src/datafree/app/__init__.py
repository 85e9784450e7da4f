"""What a person sees: the command line, its tables, folders of images, timings."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datafree.app.inspection import inspect
    from datafree.app.report import write_report

__all__ = [
    "inspect",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Once it is asked for: the command line need not load torch to show its help."""
    if name == "inspect":
        from datafree.app.inspection import inspect

        return inspect
    if name == "write_report":
        from datafree.app.report import write_report

        return write_report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
