"""Scripts of `bench/tables/`: each says how it is run and has its line in README; rooms below know nothing of them."""

from __future__ import annotations

import importlib
import re
import sys

import pytest

pytest.importorskip("sklearn")
from bench.rows import ROOT

BENCH = ROOT / "bench"
SCRIPTS = sorted(path.stem for path in (BENCH / "tables").glob("*.py") if "__main__" in path.read_text())


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_shows_the_command(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"bench.tables.{name}").main()
    assert stopped.value.code == 0
    assert f"python -m bench.tables.{name}" in capsys.readouterr().out


def test_readme_has_one_line_a_script():
    lines = re.findall(
        r"^\| .+ \| \[(\w+)\]\(tables/(\w+)\.py\).* \| .+ \|$", (BENCH / "README.md").read_text(), re.MULTILINE
    )
    assert sorted(lines) == [(name, name) for name in SCRIPTS]


@pytest.mark.parametrize(
    "room, may", [("networks", {"networks", "rows"}), ("published", {"published"}), ("peers", set())]
)
def test_rooms_import_only_from_below(room, may):
    text = "\n".join(path.read_text() for path in (BENCH / room).glob("*.py"))
    assert set(re.findall(r"^(?:from|import) bench\b\.?(\w*)", text, re.MULTILINE)) <= may
