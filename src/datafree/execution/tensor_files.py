"""Safetensors files: the same bytes each time, and with a checksum that finds a flipped bit."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

CHECKSUM = "crc32"  # the word under which it lies in a file


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, the same bytes each time.

    Raises:
        OSError: as every other file that cannot be written, where safetensors raises one of its own.
    """
    try:
        save_file(dict(tensors), path, None if metadata is None else dict(metadata))
    except SafetensorError as error:
        number = re.search(r"\((?:os error |Os \{ code: )(\d+)", str(error))  # of today, and of safetensors 0.4
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    if len(metadata or ()) > 1:
        _sort_metadata(path)


def save_checked(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """`save_tensors` with a checksum of the tensors beside them."""
    save_tensors(tensors, path, {CHECKSUM: _checksum(tensors), **(metadata or {})})


def load_checked(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and what is written beside them; files of before have no checksum.

    Raises:
        ValueError: the tensors are others than were written.
        SafetensorError, OSError: it is no such file, or damaged.
    """
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    if CHECKSUM in metadata and metadata[CHECKSUM] != _checksum(tensors):
        raise ValueError("its checksum does not fit: it was altered")
    return tensors, metadata


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Eight hexadecimal digits of names, types, shapes and values; finds accidents, not malice."""
    found = 0
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), found)
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found = zlib.crc32(values.numpy().data, found)
    return f"{found:08x}"


def _sort_metadata(path: Path) -> None:
    """Its own order is another one each time."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= size, "it is the same text in another order"
        file.seek(8)
        file.write(text.ljust(size))
