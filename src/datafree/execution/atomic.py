"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (*NO_ROOM, errno.EROFS, errno.EIO)


class UnwrittenError(OSError):
    """A file or folder that could not be written; nothing of it is there, and what it was to replace still is."""


class UnwritableError(OSError, ValueError):
    """A place that nothing can be written into."""


@contextmanager
def atomic_write(path: Path, *, companions: Sequence[str] = ()) -> Iterator[Path]:
    """A place beside `path` to write a file or a folder to; at the end it is flushed and takes the place of `path`.

    Folders on the way are made. Whatever is raised inside, or a full disk, leaves `path` as it was and nothing beside.

    Args:
        companions: names of files that belong to `path` and lie beside it. Those that are written beside the place are
            replaced together with it, those that are not are gone: there is no `path` until all of them are there.

    Raises:
        UnwrittenError: there is no room, or the disk fails.
        UnwritableError: nothing can be written there.
    """
    try:
        with _scratch_beside(path) as scratch:
            place = scratch / path.name
            yield place
            for file in [*(place.with_name(name) for name in companions), place, *place.rglob("*")]:
                if file.is_file():
                    with file.open("rb") as written:
                        os.fsync(written.fileno())
            if path.exists() and (place.is_dir() or companions):
                path.replace(scratch / f"{path.name}.old")
            for name in companions:
                _take_over(place.with_name(name), path.with_name(name))
            place.replace(path)
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        advice = "make room there" if error.errno in NO_ROOM else "choose another place"
        raise UnwrittenError(f"{path} was not written: {error.strerror}; {advice}") from error


@contextmanager
def _scratch_beside(path: Path) -> Iterator[Path]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-")
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        said = f"nothing can be written into {path.parent}: {error.strerror}; choose another place"
        raise UnwritableError(said) from error
    with scratch as name:
        yield Path(name)


def check_writable(folder: Path) -> None:
    """Write into a folder that is there, and take it away again; permissions alone do not tell.

    Raises:
        UnwritableError: nothing can be written there.
    """
    with _scratch_beside(folder / "datafree"):
        pass


def _take_over(new: Path, old: Path) -> None:
    if new.exists():
        new.replace(old)
    else:
        old.unlink(missing_ok=True)
