"""The arguments that this command was called with."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar

_arguments: ContextVar[tuple[str, ...]] = ContextVar("arguments", default=())


def remember_arguments(arguments: Sequence[str]) -> None:
    _arguments.set(tuple(arguments))


def arguments_given() -> tuple[str, ...]:
    """Nothing where no command is under way."""
    return _arguments.get()
