"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A place beside `path` to write a file or a folder to; at the end it is flushed and takes the place of `path`.

    Folders on the way are made. Whatever is raised inside, or a full disk, leaves `path` as it was and nothing beside.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        place = Path(scratch) / path.name
        yield place
        for file in [place, *place.rglob("*")]:
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        if place.is_dir() and path.exists():
            path.replace(Path(scratch) / f"{path.name}.old")
        place.replace(path)
