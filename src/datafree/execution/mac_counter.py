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
    """Multiply-adds so far; those of a counter inside another are the other's, too."""

    macs: int = 0
    outer: Counter | None = None

    def add(self, macs: int) -> None:
        self.macs += macs
        if self.outer is not None:
            self.outer.add(macs)


_active: ContextVar[Counter | None] = ContextVar("counter", default=None)


@contextmanager
def count_macs() -> Iterator[Counter]:
    """Count what runs inside."""
    with _counting(Counter(outer=_active.get())) as counter:
        yield counter


@contextmanager
def uncounted() -> Iterator[None]:
    """What runs inside is no part of the work."""
    with _counting(Counter()):
        yield


@contextmanager
def _counting(counter: Counter) -> Iterator[Counter]:
    token = _active.set(counter)
    try:
        yield counter
    finally:
        _active.reset(token)


def add_macs(macs: int) -> None:
    """Add to the innermost counter, where there is one."""
    counter = _active.get()
    if counter is not None:
        counter.add(macs)


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
    """The value, and what a process of its own spent; here it is counted as it is spent."""
    here = _active.get() is not None
    with count_macs() as spent:
        value = function(item)
    return value, 0 if here else spent.macs
