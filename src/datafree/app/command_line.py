"""The arguments that this command was called with, and when."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextvars import ContextVar

_arguments: ContextVar[tuple[str, ...]] = ContextVar("arguments", default=())
_begun: ContextVar[float | None] = ContextVar("begun", default=None)


def remember_arguments(arguments: Sequence[str]) -> None:
    _arguments.set(tuple(arguments))
    _begun.set(time.monotonic())


def arguments_given() -> tuple[str, ...]:
    """Nothing where no command is under way."""
    return _arguments.get()


def first_begun() -> float | None:
    """When the command began, for the first part of it that asks; None for those to come."""
    begun = _begun.get()
    _begun.set(None)
    return begun
