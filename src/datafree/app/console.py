"""The terminal: the only file that prints."""

from __future__ import annotations

import json
import os
import sys

from rich.console import Console, RenderableType

WIDTH = 100  # columns, where there is no terminal to ask


def show_error(message: str) -> None:
    """One line, on stderr."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)


def note(line: str) -> None:
    """Beside the results, on stderr."""
    print(line, file=sys.stderr, flush=True)


def show_json(value: object) -> None:
    print(json.dumps(value, indent=2))


def show(*shown: RenderableType) -> None:
    for item in shown:
        open_console().print(item)


def open_console(*, stderr: bool = False) -> Console:
    """Strings are names and numbers, never markup."""
    known = (sys.stderr if stderr else sys.stdout).isatty() or "COLUMNS" in os.environ
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, width=None if known else WIDTH)
