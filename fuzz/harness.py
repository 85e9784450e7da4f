"""What all fuzzers share: files are read through the package's public functions, which refuse them in one line.

A finding is an exception of another kind, a message of several lines, memory beyond what SECURITY.md states, and what
a file has no business with: a module that is imported, a program that is started, a file written elsewhere.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

PLACE = Path(".cache") / "fuzz"  # what was found, and the inputs that led to new code
FORBIDDEN = {"antigravity", "this"}  # modules that seeds ask for and nothing else does
RUNS = {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"}
CHANGES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "shutil.rmtree"}


@dataclass(frozen=True)
class Target:
    """One kind of file.

    seeds: files that are read without an error, and some made to do harm.
    read: writes a file's content into a folder and reads it from there.
    allowed: errors that say what is wrong.
    fault: makes another file of one.
    more: bytes beyond the file's share, for what it tells to be computed.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[bytes, Path], object]
    allowed: tuple[type[Exception], ...]
    fault: Callable[[bytes, random.Random], bytes]
    more: int = 0


class Finding(Exception):
    """What must not be."""


def instrumented(*packages: str) -> AbstractContextManager[object]:
    """What is imported inside reports its branches, where atheris is there."""
    try:
        import atheris
    except ModuleNotFoundError:
        return nullcontext()
    return atheris.instrument_imports(include=["datafree", *packages])


def check(target: Target, data: bytes) -> Exception | None:
    """Read a file; returns the error that refused it, None where it was read.

    Raises:
        Finding: anything else.
    """
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, watched(Path(folder)) as seen:
        before, refused = _reset_peak(), None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                target.read(data, Path(folder))
            except target.allowed as error:
                refused = error
            except Exception as error:
                raise Finding(f"{type(error).__name__} in {_place(error)}: {_short(error)}") from error
        grown, most = _peak() - before, allowed_bytes(len(data)) + target.more
    if seen:
        raise Finding(f"{seen[0]}")
    if grown > most:
        raise Finding(f"{grown >> 20} MiB for a file of {len(data)} bytes")
    if refused is not None and (not str(refused).isprintable() or len(str(refused)) > 2000):
        raise Finding(f"{type(refused).__name__}, whose message is no line, from {_place(refused)}: {_short(refused)}")
    return refused


def allowed_bytes(size: int) -> int:
    """What SECURITY.md states."""
    from datafree.execution import most_bytes

    return most_bytes(size)


_watching: list[tuple[Path, list[str]]] = []


def _hook(event: str, arguments: tuple) -> None:
    if not _watching:
        return
    folder, seen = _watching[-1]
    harmful = event in RUNS or (event in CHANGES and not _inside(arguments[0], folder))
    if event == "import" and arguments[0] in FORBIDDEN:
        harmful = True
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        harmful = not _inside(arguments[0], folder)
    if harmful:
        seen.append(f"{event} of {arguments[0]!r}"[:200])


CACHES = ("__pycache__", "torchinductor")  # Python's and PyTorch's own


def _inside(path: object, folder: Path) -> bool:
    return (
        isinstance(path, int)
        or str(path).startswith(str(folder))
        or str(path) == "/proc/self/clear_refs"
        or any(x in str(path) for x in CACHES)
    )


@contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """What is imported, started, and written outside of `folder`."""
    if "hook" not in vars(check):
        sys.addaudithook(_hook)
        vars(check)["hook"] = True
    seen: list[str] = []
    _watching.append((folder, seen))
    try:
        yield seen
    finally:
        _watching.pop()


def _reset_peak() -> int:
    """Bytes held now, from where the peak counts again; 0 where the system is not Linux."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    try:
        return 1024 * int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore
    except OSError:
        return 0


def _place(error: BaseException) -> str:
    """The last line of this package that the error passed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/datafree/" in frame.filename] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}"


def _short(error: BaseException) -> str:
    return repr(str(error)[-260:])


def fuzz(target: Target) -> None:
    """The command line of a fuzzer; ends with exit code 1 where there was a finding."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--replay", type=Path, nargs="*", default=[], help="findings to try again, with tracebacks")
    asked = parser.parse_args()
    if asked.replay:
        for path in asked.replay:
            print(path, check(target, path.read_bytes()))
        return
    _search(target, asked.minutes)


def _search(target: Target, minutes: float) -> None:
    import atheris

    found, corpus = PLACE / target.name / "findings", PLACE / target.name / "corpus"
    for folder in (found, corpus):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number:03d}").write_bytes(seed)
    known: set[str] = set()

    def once(data: bytes) -> None:
        try:
            check(target, data)
        except Finding as error:
            key = re.sub(r"0x[0-9a-f]+|\d\d+ MiB|'.*|\".*", "", str(error))
            if key not in known:
                known.add(key)
                (found / f"{len(known):03d}").write_bytes(data)
                print(f"FINDING {len(known):03d}: {error}", flush=True)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        dice = random.Random(seed)
        changed = atheris.Mutate(data, most) if dice.random() < 0.2 else target.fault(data, dice)
        return changed[:most]

    options = [f"-max_total_time={round(60 * minutes)}", "-timeout=300", "-rss_limit_mb=6000", "-max_len=200000"]
    options += [f"-artifact_prefix={found}/", "-print_final_stats=1", "-reload=0", "-len_control=0"]
    print(f"{target.name}: {minutes:g} minutes, {time.strftime('%H:%M')}", flush=True)
    atheris.Setup([sys.argv[0], *options, str(corpus)], once, custom_mutator=mutate)
    atheris.Fuzz()
