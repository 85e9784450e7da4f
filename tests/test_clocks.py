"""A laptop that sleeps, a clock that is set: nothing here goes by the time of day, nor by the times of files."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import pytest

import datafree

PACKAGE = Path(datafree.__file__).parent
CLOCKS = {
    "time": {"time", "time_ns", "ctime", "localtime", "gmtime", "strftime", "clock_gettime"},
    "datetime": {"now", "utcnow", "today", "datetime", "date"},
    "path": {"getmtime", "getctime", "getatime"},
}
TIMES_OF_FILES = {f"st_{kind}time{unit}" for kind in "mca" for unit in ("", "_ns")}


def clocks_read(text):
    """Names of clocks and times of files that a source asks for."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Attribute(value=ast.Name(id=name) | ast.Attribute(attr=name), attr=read):
                found |= {read} & (CLOCKS.get(name, set()) | TIMES_OF_FILES)
            case ast.Attribute(attr=read):
                found |= {read} & TIMES_OF_FILES
            case ast.ImportFrom(module=name, names=read):
                found |= {alias.name for alias in read} & CLOCKS.get(name or "", set())
    return found


def test_no_duration_is_measured_by_the_time_of_day():
    read = {str(f.relative_to(PACKAGE)): found for f in PACKAGE.rglob("*.py") if (found := clocks_read(f.read_text()))}
    assert read == {}


@pytest.mark.parametrize(
    "text",
    ["import time\nx = time.time()", "from time import time", "datetime.datetime.now()", "a = file.stat().st_mtime"],
)
def test_what_is_looked_for_is_found(text):
    assert clocks_read(text)


def test_the_clocks_that_are_read_never_go_back():
    assert all(time.get_clock_info(name).monotonic for name in ("monotonic", "perf_counter"))
    assert not any(time.get_clock_info(name).adjustable for name in ("monotonic", "perf_counter"))
