"""What `datafree demo digits` prints, as rows and as the table of docs/start.md.

python -m bench.tables.digits     # half a minute, one thread
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.rows import RESULTS, append_row, commits_note, mark, rows_on_file
from bench.tables import markdown

FILE = "digits.jsonl"
HEAD = ("top-1, `datafree`", "top-1, plain rounding", "bytes", "of float32", "time")


@dataclass(frozen=True)
class Digits:
    """One recipe; top-1 in percent."""

    preset: str
    float_top1: float
    top1: float
    plain_rounding_top1: float
    num_images: int
    bytes: int
    float_bytes: int
    seconds: float
    commit: str = ""


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    command = [sys.executable, "-m", "datafree", "demo", "digits", "--json", "--threads", "1"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for row in found["presets"]:
        append_row(RESULTS / FILE, {"float_top1": found["float_top1"], **row})
    print(block(RESULTS), end="")


def block(folder: Path) -> str:
    """One recipe a line, below the float network."""
    rows = rows_on_file([folder / FILE], Digits, lambda row: row.preset)
    first = rows[0]
    lines = [["float32", f"{first.float_top1:.1f} %", "", f"{first.float_bytes:,}", "100.0 %", ""]]
    lines += [
        [
            f"`{row.preset}`", f"{row.top1:.1f} %{mark([row])}", f"{row.plain_rounding_top1:.1f} %", f"{row.bytes:,}",
            f"{100 * row.bytes / row.float_bytes:.1f} %", f"{row.seconds:.1f} s",
        ]
        for row in rows
    ]  # fmt: skip
    error = math.sqrt(first.float_top1 * (100 - first.float_top1) / first.num_images)
    note = f"Top-1 of {first.num_images} held-out digits; the standard error of float32 is {error:.1f} points."
    return "\n".join([*markdown.grid(HEAD, lines), "", note, commits_note(rows)]) + "\n"


if __name__ == "__main__":
    main()
