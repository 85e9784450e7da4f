"""Memory for tensors on their way through a network, and files that hold what does not fit (ours)."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

SHARE = 8  # a tensor of more than this part of the room waits in a file
COPIES = 4  # of what a call reads and gives, while it runs


@dataclass(frozen=True)
class Room:
    """How much may be on its way at a time.

    size: bytes, about; None = all that there is.
    place: the folder of the files; None = that of temporary files. What is in it when a process ends is gone.
    """

    size: int | None = None
    place: Path | None = None


ALL_IN_MEMORY = Room()
_FILES: weakref.WeakValueDictionary[int, mmap.mmap] = weakref.WeakValueDictionary()  # all, by the address in memory


class Files:
    """Tensors whose memory is a file without a name: the system may take it out of memory and read it again."""

    def __init__(self, place: Path | None) -> None:
        self._place = place
        self._maps: weakref.WeakValueDictionary[int, mmap.mmap] = weakref.WeakValueDictionary()  # by address

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor to be written, whose file goes with it.

        Raises:
            OSError: there is no room for the file.
        """
        size = max(1, torch.Size(shape).numel() * dtype.itemsize)
        with tempfile.TemporaryFile(dir=self._place) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, and a signal later
            else:
                file.truncate(size)
            held = mmap.mmap(file.fileno(), size)
        found = torch.frombuffer(held, dtype=dtype, count=torch.Size(shape).numel()).view(shape)
        address = found.untyped_storage().data_ptr()
        self._maps[address] = _FILES[address] = held
        return found

    def holds(self, x: Tensor) -> bool:
        """Whether a tensor, or what it is a view of, lies in a file."""
        return x.untyped_storage().data_ptr() in self._maps

    def put_away(self) -> None:
        """Take all of them out of this process's memory; what reads them brings them back."""
        for held in self._maps.values():
            _put_away(held)


def is_in_file(x: Tensor) -> bool:
    """Whether a tensor, or what it is a view of, lies in a file of `Files`."""
    return x.untyped_storage().data_ptr() in _FILES


def put_away(x: Tensor) -> None:
    """Take a tensor that lies in a file out of this process's memory; it is read again where it is needed."""
    held = _FILES.get(x.untyped_storage().data_ptr())
    if held is not None:
        _put_away(held)


def in_turn(x: Tensor) -> Iterator[Tensor]:
    """What lies in a file, one entry of dimension 0 after another, each put away once it is read; else `x` itself."""
    for part in x.split(1) if is_in_file(x) else [x]:
        yield part
        put_away(x)


def _put_away(held: mmap.mmap) -> None:
    if hasattr(mmap, "MADV_DONTNEED"):
        held.madvise(mmap.MADV_DONTNEED)


class Parts:
    """Works on as many images at a time as there is room for; without a limit, on all of them, in memory."""

    def __init__(self, room: Room, num_images: int) -> None:
        self._size, self._count, self._files = room.size, num_images, Files(room.place)

    @property
    def is_limited(self) -> bool:
        return self._size is not None

    def is_batch(self, value: object) -> bool:
        """Whether a value may hold one entry an image."""
        return isinstance(value, Tensor) and value.dim() > 2 and len(value) == self._count

    def apply(self, function: Callable[..., Tensor], *batches: Tensor, gives: int = 0) -> Tensor:
        """`function` of tensors (N, ...), one entry an image each; an image of the result is of those images alone.

        Args:
            gives: numbers in one image of the result, where that may be more than is read.
        """
        if self._size is None:
            return function(*batches)
        reads = sum(x[0].numel() * x.element_size() for x in batches)
        at_once = max(1, self._size // max(1, COPIES * max(reads, gives * batches[0].element_size())))
        if at_once >= self._count:
            return self.keep(function(*batches))
        found: Tensor | None = None
        for start in range(0, self._count, at_once):
            part = function(*(x[start : start + at_once] for x in batches))
            if found is None:
                found = self._empty((self._count, *part.shape[1:]), part.dtype)
            found[start : start + at_once] = part
            self._files.put_away()
        assert found is not None, "there is an image"
        return found

    def put_away(self) -> None:
        """Take what lies in files out of memory."""
        self._files.put_away()

    def keep(self, value: Tensor) -> Tensor:
        """The same tensor, in a file if it is large; and everything in files is put away."""
        if self._size is None:
            return value
        if SHARE * value.numel() * value.element_size() > self._size and not self._files.holds(value):
            value = self._empty(tuple(value.shape), value.dtype).copy_(value)
        self._files.put_away()
        return value

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        assert self._size is not None, "asked only where there is a limit"
        if SHARE * torch.Size(shape).numel() * dtype.itemsize > self._size:
            return self._files.empty(shape, dtype)
        return torch.empty(shape, dtype=dtype)
