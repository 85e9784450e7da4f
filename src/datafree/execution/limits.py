"""How much memory a file may ask for: what it unpacks to and declares is bounded by its own size."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

CHECKSUM = "crc32"  # the word under which it lies in a file
FACTOR, FLOOR = 64, 2**28  # deflate takes no photograph or weight to a 64th; 256 MiB of zeros take no bytes at all


def most_bytes(size: int) -> int:
    """What a file of `size` bytes may become in memory: 64 times as much, and 256 MiB (ours; SECURITY.md states it)."""
    return FACTOR * size + FLOOR


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Eight hexadecimal digits of names, types, shapes and values; finds accidents, not malice."""
    found = 0
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), found)
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found = zlib.crc32(values.numpy().tobytes(), found)
    return f"{found:08x}"


def check_whole(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> None:
    """Compare with the checksum that was written beside the tensors; files of before have none.

    Raises:
        ValueError: they are others.
    """
    if checksum(tensors) != (metadata or {}).get(CHECKSUM, checksum(tensors)):
        raise ValueError("its checksum does not fit: it was altered")


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
