"""Memory that tensors leave is used again, where glibc would ask the system for fresh pages at every step."""

from __future__ import annotations

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as glibc's malloc.h numbers them
LARGEST = 2**30  # bytes of a tensor whose memory is kept
KEPT = 2**31 - 1  # bytes that may lie free
SMALL = 2**20  # bytes of a tensor whose memory goes back, and that may lie free, where there is a limit


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed (ours); returns whether it was told.

    Tensors above 32 MB get fresh pages each time otherwise, and the system clears these: a quarter of the processor
    time of `w8a8` of MobileNetV2. A process holds up to a third more memory for it. Only for processes of our own; what
    the user's environment says to glibc counts.
    """
    return _tell(LARGEST, KEPT)


def give_back_freed_memory() -> bool:
    """Tell glibc to keep nothing that is freed (ours); returns whether it was told.

    Left to itself it comes to keep what tensors up to 32 MB leave, and holes between them. For a process with a limit.
    """
    return _tell(SMALL, SMALL)


def _tell(largest: int, free: int) -> bool:
    """Where tensors of up to so many bytes lie, glibc keeps them; so many bytes may lie free at the end of all."""
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_THRESHOLD, largest) and libc.mallopt(M_TRIM_THRESHOLD, free))
