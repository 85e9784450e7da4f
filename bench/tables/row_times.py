"""How long a row takes: the table of bench/README.md, from the rows of zoo.py and prune.py; nothing is measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path

from bench.rows import mark
from bench.tables import markdown
from bench.tables.accuracy import Row, written

HEAD = ("a row of zoo, s", "a row of prune, s", "images, once, s")


def block(folder: Path) -> str:
    """Medians over the presets, one network a line."""
    benches = [written(folder, name) for name in ("zoo", "prune")]
    lines = []
    for network in markdown.networks_of(row for rows in benches for row in rows):
        own = [[r for r in rows if r.network == network and r.row == "ours"] for rows in benches]
        made = [r.image_seconds for rows in own for r in rows if r.image_seconds]
        lines.append([markdown.NICK[network], *map(_median, own), f"{statistics.median(made):.0f}" if made else "-"])
    return "\n".join(markdown.grid(HEAD, lines)) + "\n"


def _median(rows: Iterable[Row]) -> str:
    rows = list(rows)
    return f"{statistics.median(r.seconds for r in rows):.0f}{mark(rows)}" if rows else "-"
