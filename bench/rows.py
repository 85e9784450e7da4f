"""Rows of the JSON lines files in `results/`: written with the commit that made them, read back, and told apart by age.

A row is current where no result can differ between its commit and HEAD: nothing under `src/` does, or every commit
since then that touched `src/` ends its message in the line "Results: unchanged", which tests/digests.py must have
shown. The line "Results: images of A B" says that of networks A and B images are made in another way: rows that were
made without such images, and those of other networks, stay current. "Results: presets A B" says that of rows with a
preset those of A and B alone are old. A commit that ends in "+" had changes of its own
under `src/`, which no one else has: its rows are old, and so are those without a commit.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Container, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Protocol, TypeVar

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
OLD = "†"
UNCHANGED = "unchanged"  # in the trailer "Results: unchanged" of a commit
IMAGES_OF = "images of "  # in the trailer "Results: images of A B"
PRESETS = "presets "  # in the trailer "Results: presets A B"


class HasCommit(Protocol):
    """Anything read from a file of rows."""

    @property
    def commit(self) -> str: ...


class HasKey(HasCommit, Protocol):
    """A row that need not be made again."""

    @property
    def key(self) -> Hashable: ...

    @property
    def num_images(self) -> int: ...


Row = TypeVar("Row")
Dated = TypeVar("Dated", bound=HasCommit)


def commit(root: Path = ROOT) -> str:
    """The short name of HEAD, and "+" behind it where files under `src/` are changed or new; "" without git."""
    head = _git(root, "rev-parse", "--short", "HEAD")
    if head is None:
        return ""
    return head + ("+" if _git(root, "status", "--porcelain", "--", "src") else "")


def is_current(made_by: str, root: Path = ROOT) -> bool:
    """Whether the code of `src/` at HEAD gives the results of that commit."""
    return changed_since(made_by, root) == Changed()


def is_row_current(row: HasCommit) -> bool:
    """Whether the code of `src/` at HEAD gives this row."""
    if is_current(row.commit):
        return True
    changed = changed_since(row.commit)
    uses_images = getattr(row, "images_commit", None) != ""
    return changed is not None and not (
        (uses_images and getattr(row, "network", "") in changed.images_of)
        or getattr(row, "preset", "") in changed.presets
    )


@dataclass(frozen=True)
class Changed:
    """What HEAD does in another way than a commit, all else being equal."""

    images_of: frozenset[str] = frozenset()  # networks of which other images are made
    presets: frozenset[str] = frozenset()  # that give other results


@cache
def changed_since(made_by: str, root: Path = ROOT) -> Changed | None:
    """What HEAD does in another way than that commit; None = all results may differ."""
    if not made_by or made_by.endswith("+"):
        return None
    if _git(root, "diff", "--quiet", made_by, "HEAD", "--", "src") is not None:
        return Changed()
    if _git(root, "merge-base", "--is-ancestor", made_by, "HEAD") is None:
        return None
    said = "--format=%h %(trailers:key=Results,valueonly,separator=%x20)"
    since = _git(root, "log", said, f"{made_by}..HEAD", "--", "src") or ""
    told = [line.partition(" ")[2] for line in since.splitlines()]
    named = {start: [v for v in told if v.startswith(start)] for start in (IMAGES_OF, PRESETS)}
    if len(told) > told.count(UNCHANGED) + sum(map(len, named.values())):
        return None
    return Changed(
        *(frozenset(name for v in found for name in v[len(start) :].split()) for start, found in named.items())
    )


def _git(root: Path, *arguments: str) -> str | None:
    """What git says; None where it fails or is not there."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def loaded_commit(root: Path = ROOT) -> str:
    """`commit`, with "+" too where the package that is imported is not the one under `src/`."""
    made_by, spec = commit(root), find_spec("datafree")
    elsewhere = spec is None or spec.origin is None or root / "src" not in Path(spec.origin).parents
    return f"{made_by}+" if elsewhere and made_by and not made_by.endswith("+") else made_by


STARTED_AT = loaded_commit()  # the code was loaded now: a commit made while a bench runs changes nothing of it


# ---- files


def append_row(path: Path, row: Mapping[str, object]) -> None:
    """Add a row to a JSON lines file, as soon as it is measured, with the commit that made it."""
    with path.open("a") as file:
        file.write(json.dumps({**row, "commit": STARTED_AT}) + "\n")


def rows_on_file(paths: Iterable[Path], kind: Callable[..., Row], key: Callable[[Row], Hashable]) -> list[Row]:
    """All rows of JSON lines files, the last one of each key; a field that `kind` does not have is left out."""
    lines = [json.loads(line) for path in paths if path.exists() for line in path.read_text().splitlines()]
    known = signature(kind).parameters
    rows = [kind(**{name: value for name, value in line.items() if name in known}) for line in lines]
    return list({key(row): row for row in rows}.values())


def add_missing(path: Path, asked: Iterable[tuple[Hashable, Callable[[], object]]], done: Container[Hashable]) -> None:
    """Measure what is not done; a row is on file, and printed, before the next one is asked for.

    Args:
        asked: the key of every row, and what makes it.
    """
    for key, measure in asked:
        if key not in done:
            row = measure()
            append_row(path, vars(row))
            print(row, flush=True)


# ---- age


def finished(rows: Iterable[HasKey], num_images: int) -> set[Hashable]:
    """Keys of rows that need no repeating: current, and of as many images."""
    return {r.key for r in rows if is_row_current(r) and r.num_images == num_images}


def newest(rows: Iterable[Dated]) -> list[Dated]:
    """The current rows; all of them where none is."""
    rows = list(rows)
    return [r for r in rows if is_row_current(r)] or rows


def mark(rows: Iterable[HasCommit]) -> str:
    """What a cell made of these rows ends in: "†" where one of them is old."""
    return "" if all(map(is_row_current, rows)) else f" {OLD}"


def commits_note(rows: Iterable[HasCommit]) -> str:
    """One line: which commits the rows of a page are of, and what made its old ones."""
    rows = list(rows)
    current, old = (sorted({r.commit for r in rows if is_row_current(r) is now}) for now in (True, False))
    parts = [f"Rows of commit {', '.join(current)}."] if current else []
    if old:
        named = ", ".join(f"commit {c}" if c else "commit not kept" for c in old)
        parts.append(f"{OLD} made by older code ({named}).")
    return " ".join(parts)
