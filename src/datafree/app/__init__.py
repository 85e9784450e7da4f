"""What a person sees: the command line, its tables, folders of images, timings."""

from datafree.app.inspect import inspect

__all__ = [
    "inspect",
]
