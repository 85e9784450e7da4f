"""No collection of garbage while what stays is loaded: modules, networks, graphs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


@contextmanager
def uncollected(*, for_good: bool = False) -> Iterator[None]:
    """Python looks for circles among all that is there again and again as it grows: a fifth of the time of loading.

    Args:
        for_good: in what there is afterwards none is looked for again, either; once a process, for later calls may come
            when there is garbage.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
        if for_good:
            _freeze_once()
    finally:
        if was_on:
            gc.enable()


@cache
def _freeze_once() -> None:
    gc.freeze()
