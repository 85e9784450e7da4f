"""Processes that work side by side; what a killed one was at is done again, by fewer (ours)."""

from __future__ import annotations

import multiprocessing
import pickle
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from datafree.execution.memory import out_of_memory

KILLED = "a process was killed, for want of memory most likely"


class WorkerError(RuntimeError):
    """A process was killed each time that it was at the same item, or had no memory left, in the end by itself."""


@dataclass(frozen=True)
class Lost:
    """A process that was killed, or had no memory left.

    under_way: names of the items that were being done; "" of those that have none.
    why: what is known of it.
    workers: processes that go on; 1 = one item at a time.
    """

    under_way: tuple[str, ...]
    why: str
    workers: int

    def __str__(self) -> str:
        names = ", ".join(name for name in self.under_way if name)
        left = "one process, one by one" if self.workers == 1 else f"{self.workers} processes"
        return f"{self.why}; done again by {left}: {names or 'what was under way'}"


def warn_of(lost: Lost) -> None:
    """The `on_lost` of someone who does not listen."""
    warnings.warn(str(lost), RuntimeWarning, stacklevel=2)


@dataclass
class _Sent:
    """An item under way: as it was sent, and where its result will be."""

    name: str
    payload: bytes
    result: Future | None = None

    @property
    def is_done(self) -> bool:
        return self.result is not None and self.result.done() and self.result.exception() is None


class _LossError(Exception):
    """Why what is under way has to be done again; nothing else that is raised on the way means that."""


def work_side_by_side(
    function: Callable[[Any], Any], items: Iterator[Any], *, num_workers: int, on_lost: Callable[[Lost], None]
) -> Iterator[Any]:
    """Results in the order of the items; after every loss half of the processes go on, the last with one item a time.

    The function is pure, so that what is done again ends with the same bits.

    Raises:
        WorkerError: the one process left was lost, too, at one item by itself; names it.
    """
    waiting: deque[_Sent] = deque()
    at_once = 2 * num_workers
    while True:
        try:
            yield from _until_one_is_lost(function, items, waiting, num_workers, at_once)
            return
        except _LossError as loss:
            names = tuple(sent.name for sent in waiting if not sent.is_done)
            if at_once == 1:
                raise WorkerError(
                    f"{names[0] or 'one item'}: {loss}, though nothing else was done; free some memory, or use no "
                    "other process (workers=1)"
                ) from loss.__cause__
            num_workers = max(1, num_workers // 2)
            at_once = 2 * num_workers if num_workers > 1 else 1
            on_lost(Lost(names, str(loss), num_workers))


def _until_one_is_lost(
    function: Callable[[Any], Any], items: Iterator[Any], waiting: deque[_Sent], num_workers: int, at_once: int
) -> Iterator[Any]:
    """Results, those first whose items wait already; at most `at_once` items are under way.

    Raises:
        _LossError: a process is gone, or had no memory left; what waits is still to be done.
    """
    context = multiprocessing.get_context("spawn")  # fork and torch's threads do not mix
    with ProcessPoolExecutor(num_workers, mp_context=context) as executor:
        try:
            again = [sent for sent in waiting if not sent.is_done]
            for sent in again:
                sent.result = None
            for sent in again[:at_once]:
                _submit(executor, sent)
            while True:
                while len(waiting) < at_once and (item := next(items, _END)) is not _END:
                    waiting.append(_Sent(_name(item), pickle.dumps((function, item))))
                    _submit(executor, waiting[-1])
                if not waiting:
                    return
                value = pickle.loads(_result(executor, waiting[0]))
                waiting.popleft()
                yield value
        except _LossError:
            raise
        except BaseException:  # nobody will ask for what is under way, which may take hours
            for process in [*(executor._processes or {}).values()]:
                process.terminate()
            raise


_END = object()


def _submit(executor: ProcessPoolExecutor, sent: _Sent) -> Future:
    try:
        sent.result = executor.submit(_apply, sent.payload)
        return sent.result
    except BrokenProcessPool as error:
        raise _LossError(KILLED) from error


def _result(executor: ProcessPoolExecutor, sent: _Sent) -> bytes:
    try:
        return (sent.result or _submit(executor, sent)).result()
    except BrokenProcessPool as error:
        raise _LossError(KILLED) from error
    except MemoryError as error:
        raise _LossError(f"a process had no memory left ({error})") from error


def _name(item: Any) -> str:
    match item:
        case object(name=str(name)):
            return name
    return ""


def _apply(payload: bytes) -> bytes:
    """Plain pickles, so that no tensor travels through shared memory."""
    function, item = pickle.loads(payload)
    try:
        return pickle.dumps(function(item))
    except Exception as error:
        if starved := out_of_memory(error):
            raise MemoryError(starved) from error
        raise
