"""The terminal: the only file that prints."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from rich.console import Console, RenderableType

from datafree.messages import one_line

WIDTH = 100  # columns, where there is no terminal to ask


_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


def be_quiet(asked: bool) -> bool:
    """From here to the end of the command only errors and JSON are printed."""
    _quiet.set(_quiet.get() or asked)
    return asked


def show_error(message: str) -> None:
    """One line, on stderr."""
    print(f"error: {one_line(message)}", file=sys.stderr)


def note(line: str) -> None:
    """Beside the results, on stderr."""
    if not _quiet.get():
        print(line, file=sys.stderr, flush=True)


def show_json(value: object) -> None:
    print(json.dumps(_plain(value), indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    """As JSON has it: no number that is not finite, no key or value of a kind of our own."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def show(*shown: RenderableType) -> None:
    for item in shown if not _quiet.get() else ():
        open_console().print(item)


def open_console(*, stderr: bool = False) -> Console:
    """Strings are names and numbers, never markup."""
    if stderr and _quiet.get():
        return Console(file=io.StringIO())  # no terminal: no bar
    known = (sys.stderr if stderr else sys.stdout).isatty() or "COLUMNS" in os.environ
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, width=None if known else WIDTH)
