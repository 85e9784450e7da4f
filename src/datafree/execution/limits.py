"""How much memory a file may ask for: what it unpacks to and declares is bounded by its own size."""

from __future__ import annotations

import zlib

FACTOR, FLOOR = 64, 2**28  # deflate takes no photograph or weight to a 64th; 256 MiB of zeros take no bytes at all


def most_bytes(size: int) -> int:
    """What a file of `size` bytes may become in memory: 64 times as much, and 256 MiB (ours; SECURITY.md states it)."""
    return FACTOR * size + FLOOR


def inflated(data: bytes, most: int) -> bytes:
    """What zlib squeezed into `data`.

    Raises:
        ValueError: it is more than `most` bytes, or not whole.
    """
    stream = zlib.decompressobj()
    found = stream.decompress(data, most + 1)
    if len(found) > most:
        raise ValueError(f"{len(data)} squeezed bytes hold more than {most}, which are allowed")
    if not stream.eof:
        raise ValueError("squeezed bytes are cut short")
    return found
