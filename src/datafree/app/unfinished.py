"""Work under way, kept beside what it will become: the same command goes on from there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datafree.app.console import note
from datafree.execution import CheckpointError
from datafree.run import RunError

TRANSIENT = (OSError, MemoryError, CheckpointError)  # the same command may succeed later, or the work is another's


class Interrupted(Exception):
    """Stopped by the user; says what is kept."""


def work_folder(out: Path, *, restart: bool) -> Path:
    """NAME.part beside what is to be written, with the work that an earlier run of the same command left there.

    Raises:
        RunError: a folder of that name holds something else.
    """
    folder = out.with_name(f"{out.name}.part")
    if not folder.exists():
        return folder
    if not (folder / "job.json").is_file():
        raise RunError(f"{folder} is in the way and holds no unfinished work; choose another --out")
    if restart:
        shutil.rmtree(folder)
    else:
        note(f"going on with the work in {folder}; --restart begins anew")
    return folder


@contextmanager
def kept_until_done(folder: Path) -> Iterator[None]:
    """The folder goes when all is done, or when trying again would fail again.

    Raises:
        Interrupted: in place of KeyboardInterrupt.
    """
    try:
        yield
    except KeyboardInterrupt:
        kept = f"{folder} keeps the work so far: the same command goes on from there, with --restart it begins anew"
        raise Interrupted(kept if folder.exists() else "nothing was written") from None
    except TRANSIENT:
        raise
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
