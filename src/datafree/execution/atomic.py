"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path, *, companions: Sequence[str] = ()) -> Iterator[Path]:
    """A place beside `path` to write a file or a folder to; at the end it is flushed and takes the place of `path`.

    Folders on the way are made. Whatever is raised inside, or a full disk, leaves `path` as it was and nothing beside.

    Args:
        companions: names of files that belong to `path` and lie beside it. Those that are written beside the place are
            replaced together with it, those that are not are gone: there is no `path` until all of them are there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        place = Path(scratch) / path.name
        yield place
        for file in [*(place.with_name(name) for name in companions), place, *place.rglob("*")]:
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        if path.exists() and (place.is_dir() or companions):
            path.replace(Path(scratch) / f"{path.name}.old")
        for name in companions:
            _take_over(place.with_name(name), path.with_name(name))
        place.replace(path)


def _take_over(new: Path, old: Path) -> None:
    if new.exists():
        new.replace(old)
    else:
        old.unlink(missing_ok=True)
