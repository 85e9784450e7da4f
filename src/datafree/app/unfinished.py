"""Work under way, kept beside what it will become: the same command goes on from there."""

from __future__ import annotations

import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from datafree.app.console import note
from datafree.execution import CheckpointError, RayPoolError, UnwrittenError, WorkerError, out_of_memory
from datafree.run import RunError

TRANSIENT = (OSError, CheckpointError, RayPoolError)  # the same command may succeed later, or the work is another's


class Interrupted(Exception):
    """Stopped by the user; says what is kept."""


class Starved(Exception):
    """Ended by want of memory or of room for files, as a process that was killed is; says what is kept."""


def part_of(out: Path) -> Path:
    """NAME.part beside what is to be written."""
    return out.with_name(f"{out.name}.part")


def work_folder(out: Path, *, restart: bool) -> Path:
    """Where the work is that an earlier run of the same command left.

    Raises:
        RunError: a folder of that name holds something else.
    """
    folder = part_of(out)
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
def unfinished_work(out: Path, *, restart: bool) -> Iterator[Path]:
    """The `work_folder` of one command at a time; it goes when all is done, or when trying again would fail again.

    Raises:
        Interrupted: in place of KeyboardInterrupt.
        Starved: memory or room for files ran out, or a process was killed.
        RunError: another command is writing the same file or directory; a folder of that name holds something else.
    """
    with alone_with(out):
        folder = work_folder(out, restart=restart)
        with kept_until_done(folder):
            yield folder


@contextmanager
def alone_with(out: Path) -> Iterator[None]:
    """A lock for `out`, which goes at the end; that of a command that was killed holds nobody up.

    It is with the temporary files of this machine: nothing may stay beside `out`, whose folder may not be there yet.
    """
    user = os.getuid() if hasattr(os, "getuid") else ""
    name = f"datafree-{user}-{zlib.crc32(str(out.absolute()).encode()):08x}.lock"
    place = Path(tempfile.gettempdir()) / name
    lock = FileLock(place, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(f"another command is writing {out}; wait for its end, or choose another --out") from None
    except OSError as error:
        said = f"nothing can be written into {place.parent}: {error.strerror}; set TMPDIR to a folder with room"
        raise UnwrittenError(said) from None
    try:
        yield
    finally:
        place.unlink(missing_ok=True)
        lock.release()


@contextmanager
def kept_until_done(folder: Path) -> Iterator[None]:
    """The folder goes when all is done, or when trying again would fail again.

    Raises:
        Interrupted: in place of KeyboardInterrupt.
        Starved: memory or room for files ran out, or a process was killed.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(_what_is_kept(folder)) from None
    except (UnwrittenError, WorkerError) as error:
        raise Starved(f"{error}; {_what_is_kept(folder)}") from error
    except TRANSIENT:
        raise
    except Exception as error:
        if starved := out_of_memory(error):
            raise Starved(f"{starved}; {_what_is_kept(folder)}") from error
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _what_is_kept(folder: Path) -> str:
    if not folder.exists():
        return "nothing was written"
    return f"{folder} keeps the work so far: the same command goes on from there, with --restart it begins anew"
