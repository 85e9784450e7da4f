"""Libraries that write to the process's output by themselves."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STDOUT = 1  # its number, which C writes to


@contextmanager
def silent() -> Iterator[None]:
    """Nothing written inside reaches the standard output, not from C either; it may be read by a program."""
    sys.stdout.flush()
    try:
        kept = os.dup(STDOUT)
    except OSError:  # a process without one
        yield
        return
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), STDOUT)
        yield
    finally:
        os.dup2(kept, STDOUT)
        os.close(kept)
