"""The matrix of settings: what it knows, what is installed for it, and its table."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import matrix


@pytest.mark.parametrize(
    "name, told",
    [
        ("oldest", ["--resolution", "lowest-direct"]),
        ("newest", []),
        ("python-3.10", []),
        ("python-3.13", ["--constraint", str(matrix.ROOT / "constraints.txt")]),
    ],
)
def test_versions_are_the_lowest_or_pinned_or_the_newest(name, told):
    assert matrix.versions(matrix.settings()[name]) == told


def test_this_python_needs_no_environment():
    assert matrix.python_for(matrix.settings()["avx2"], "avx2") == Path(sys.executable)


def test_a_python_that_is_not_there_is_a_row_with_the_reason():
    row = matrix.run("python-3.1", matrix.Setting("Python 3.1", python="3.1"), ["tests/none"])
    assert "| skipped | uv " in row


def test_rows_of_other_settings_stay(tmp_path):
    file = tmp_path / "matrix.md"
    for name in ("threads-2", "avx2", "threads-2"):
        matrix.write({name: matrix._row(name, matrix.settings()[name], 3, 0, 1, [])}, file)
    rows = [line for line in file.read_text().splitlines() if line.startswith("| ")][1:]
    assert [row.split(":")[0] for row in rows] == ["| threads-2", "| avx2"]
    assert all("| 3 | 0 | 1 |" in row for row in rows)


def test_a_setting_that_is_unknown_is_told(capsys):
    with pytest.raises(SystemExit):
        matrix.main(["avx3"])
    assert "no setting is called 'avx3'; there are threads-1, threads-2, " in capsys.readouterr().err
    assert matrix.main(["--list"]) == 0 and "no-onednn" in capsys.readouterr().out
