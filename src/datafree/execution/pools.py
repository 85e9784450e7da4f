"""Run a function over records, here or in processes; knows nothing of layers."""

from __future__ import annotations

import multiprocessing
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

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


def processes(num_workers: int) -> Callable[[Callable[[Item], Result], Iterable[Item]], Iterator[Result]]:
    """A pool of `num_workers` processes; results come in the order of the items.

    At most twice as many items are under way as there are workers, so that a stream of large items stays a stream.

    Raises:
        ValueError: fewer than one worker.
    """
    if num_workers < 1:
        raise ValueError(f"{num_workers} workers cannot do anything; give 1 or more")

    def pool(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        waiting: deque[Future] = deque()
        context = multiprocessing.get_context("spawn")  # fork and torch's threads do not mix
        with ProcessPoolExecutor(num_workers, mp_context=context) as executor:
            for item in items:
                waiting.append(executor.submit(_apply, pickle.dumps((function, item))))
                if len(waiting) >= 2 * num_workers:
                    yield pickle.loads(waiting.popleft().result())
            while waiting:
                yield pickle.loads(waiting.popleft().result())

    return pool


def _apply(payload: bytes) -> bytes:
    """Plain pickles, so that no tensor travels through shared memory."""
    function, item = pickle.loads(payload)
    return pickle.dumps(function(item))
