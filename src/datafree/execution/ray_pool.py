"""Run a function over records on a Ray cluster; knows nothing of layers."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from datafree.execution.pools import Item, Result, one_thread
from datafree.execution.workers import WorkerError
from datafree.extras import install

TRIES = 3  # again, of an item whose worker was lost


class RayPoolError(ValueError):
    """Ray is not installed, or there is no such cluster."""


def on_ray(
    address: str | None = None, *, num_workers: int | None = None
) -> Callable[[Callable[[Item], Result], Iterable[Item]], Iterator[Result]]:
    """A pool of the CPUs of a Ray cluster; results come in the order of the items.

    An item is a task of one CPU and one thread. It goes into Ray's object store once: where its worker is killed, it is
    done again from there, three times at most, to the same bits. At most twice as many items are under way as the
    cluster has CPUs. What this process is connected to already is used; what is started here ends with this process.

    Args:
        address: of a cluster that runs; "auto" = one on this machine; None = RAY_ADDRESS, or else one is started.
        num_workers: CPUs of the cluster that is started here; None = all.

    Raises:
        RayPoolError: Ray is not installed; later, where there is no such cluster.
        WorkerError: later, where an item lost its worker each time.
        ValueError: fewer than one worker, or a number of them for a cluster that runs already.
    """
    if find_spec("ray") is None:
        raise RayPoolError(f"Ray is not installed; {install('ray')}")
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"{num_workers} workers cannot do anything; give 1 or more")
    if num_workers is not None and (address or os.environ.get("RAY_ADDRESS")):
        raise ValueError(f"{num_workers} workers are asked for, but a cluster that runs has its own; leave one out")

    def pool(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        ray = _connected(address, num_workers)
        apply = ray.remote(num_cpus=1, max_retries=TRIES)(_apply)
        shared, tasks, under_way = ray.put(function), deque(), []
        try:
            for item in items:
                tasks.append(apply.remote(shared, item))
                under_way.append(tasks[-1])
                if len(under_way) >= 2 * ray.cluster_resources().get("CPU", 1):
                    _, under_way = ray.wait(under_way)
                while tasks and tasks[0] not in under_way:
                    yield _result(ray, tasks.popleft())
            while tasks:
                yield _result(ray, tasks.popleft())
        finally:
            for task in tasks:  # which nobody will ask for
                ray.cancel(task)

    return pool


def _apply(function: Callable[[Item], Result], item: Item) -> Result:
    with one_thread():
        return function(item)


def _connected(address: str | None, num_workers: int | None) -> Any:
    """Ray, connected to a cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster started here would tell Ray's makers
    address = address or os.environ.get("RAY_ADDRESS")
    ray, quiet = import_module("ray"), {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    if not ray.is_initialized():
        try:
            _knock(address or "")
            with _sigterm_kept():
                ray.init(address or "local", num_cpus=num_workers, **quiet)
        except OSError as error:  # a ConnectionError, or a name that is not known
            reason = str(error).splitlines()[0]
            raise RayPoolError(f"no Ray cluster at {address}: {reason}; `ray start --head` starts one") from error
    return ray


def _knock(address: str) -> None:
    """Whether somebody is there: Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself; it goes on to mean what it meant."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _result(ray: Any, task: Any) -> Any:
    """What the task returned, or its error as it was raised there."""
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise WorkerError(
            f"a worker was lost with its work, and {TRIES} times again: {str(error).splitlines()[0]} "
            "Perhaps memory ran out; give fewer workers"
        ) from error
