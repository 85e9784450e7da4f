"""Run a function over records, here or in processes; knows nothing of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from datafree.execution.workers import Lost, warn_of, work_side_by_side

Item, Result = TypeVar("Item"), TypeVar("Result")


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums split over threads may round differently (MKL promises nothing); inside, every machine adds in one order."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def serial(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Apply `function` to one item after the other."""
    return map(function, items)


def processes(
    num_workers: int, *, on_lost: Callable[[Lost], None] = warn_of
) -> Callable[[Callable[[Item], Result], Iterable[Item]], Iterator[Result]]:
    """A pool of `num_workers` processes; results come in the order of the items.

    At most twice as many items are under way as there are workers, so that a stream of large items stays a stream.
    Where one is killed, or has no memory left, half of them go on and do again what was under way.

    Args:
        on_lost: told of each process that is lost; by default Python warns.

    Raises:
        ValueError: fewer than one worker.
    """
    if num_workers < 1:
        raise ValueError(f"{num_workers} workers cannot do anything; give 1 or more")

    def pool(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        return work_side_by_side(function, iter(items), num_workers=num_workers, on_lost=on_lost)

    return pool
