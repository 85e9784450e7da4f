"""What this process has taken, what of it goes back, and whether there was no more."""

from __future__ import annotations

import ctypes
import functools
import platform
import re
import resource
import sys
from pathlib import Path

import torch


def peak_memory() -> int:
    """Largest resident size of this process so far, bytes; on Linux without that of the program that started it."""
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    if found:
        return 1024 * int(found[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """The C library, where its malloc keeps what is freed as glibc does; None = it is another."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def give_back_memory() -> None:
    """Give what lies free between tensors back to the system, where the C library can be told."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def out_of_memory(error: Exception) -> str:
    """What to say of an error that tells of memory that ran out; "" = it tells of something else.

    Torch raises a plain RuntimeError where the CPU's memory is at its end.
    """
    said = str(error)
    if isinstance(error, MemoryError):
        return said or "memory ran out"
    if isinstance(error, torch.OutOfMemoryError):
        return f"memory of the device ran out: {said.splitlines()[0]}"
    asked = re.search(r"can't allocate memory: you tried to allocate (\d+) bytes", said)
    return f"memory ran out: {int(asked[1]):,} bytes were asked for at once" if asked else ""
