"""Multiply-adds, counted while they are spent: the same for every method, on every machine.

A context variable and no argument, because work is spent deep inside of methods that third parties may write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor


@dataclass
class Counter:
    """Multiply-adds so far."""

    macs: int = 0


_active: ContextVar[Counter | None] = ContextVar("counter", default=None)


@contextmanager
def count_macs() -> Iterator[Counter]:
    """Count what runs inside. An outer counter does not see it; add `counter.macs` there where it should."""
    counter = Counter()
    token = _active.set(counter)
    try:
        yield counter
    finally:
        _active.reset(token)


def add_macs(macs: int) -> None:
    """Add to the innermost counter, where there is one."""
    counter = _active.get()
    if counter is not None:
        counter.macs += macs


def add_layer_macs(macs: int, x: Tensor, weight: Tensor, y: Tensor) -> None:
    """Count a layer y = W x of so many multiply-adds: once forward, once backward for each operand with a gradient.

    Work that is written down for the backward pass counts as done (paper: a backward pass costs two forward passes).
    """
    add_macs(macs * (1 + (x.requires_grad + weight.requires_grad if y.requires_grad else 0)))


def counting_pool(pool: Callable[[Callable, Iterable], Iterator]) -> Callable[[Callable, Iterable], Iterator]:
    """The same pool; what its functions spend, in whatever process, is counted here."""

    def counted_pool(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        for value, macs in pool(partial(_with_macs, function), items):
            add_macs(macs)
            yield value

    return counted_pool


def _with_macs(function: Callable[[Any], Any], item: Any) -> tuple[Any, int]:
    with count_macs() as spent:
        value = function(item)
    return value, spent.macs
