"""What a preset loses and saves over all networks on file, for docs/choosing.md; nothing is measured.

python -m bench.tables.render      # writes it, from the rows of zoo.py and prune.py
"""

from __future__ import annotations

import statistics
from pathlib import Path

from bench.rows import mark
from bench.tables import markdown
from bench.tables.accuracy import Row, written

PRESETS = (
    "w8a8", "w8a8-tensor", "w6a6", "w5a5", "w4a8", "w4a4", "w4a4-mixed", "w3a8", "w3a3",
    "channels20", "prune30", "prune50", "prune70", "prune50-w8a8", "prune50-w4a8",
)  # fmt: skip
HEAD = ("points lost", "median", "same class as float", "weights' bytes", "networks")


def block(folder: Path) -> str:
    """One row a preset: the least and the most over the networks that have one."""
    rows = written(folder, "zoo") + written(folder, "prune")
    cells = [(preset, _cells(rows, preset)) for preset in PRESETS]
    lines = markdown.grid(HEAD, ([f"`{preset}`", *told] for preset, told in cells if told))
    return "\n".join(lines) + "\n"


def _cells(rows: list[Row], preset: str) -> list[str]:
    """Of `ours`, each network counted once, by the mean of its seeds."""
    found = [markdown.select(rows, network, preset, "ours") for network in markdown.networks_of(rows)]
    found = [own for own in found if own]
    if not found:
        return []
    lost = [markdown.mean(own) or 0.0 for own in found]
    agreement, size = ([markdown.mean(own, field) or 0.0 for own in found] for field in ("agreement", "bytes_ratio"))
    used = mark([row for own in found for row in own])
    return [
        _span(lost, "{:.1f}") + used, f"{statistics.median(lost):.1f}", _span(agreement, "{:.0f}") + " %",
        _span([100 * ratio for ratio in size], "{:.0f}") + " %", str(len(found)),
    ]  # fmt: skip


def _span(values: list[float], form: str) -> str:
    """ "least to most", or one number where they are the same."""
    least, most = form.format(min(values)), form.format(max(values))
    return least if least == most else f"{least} to {most}"
