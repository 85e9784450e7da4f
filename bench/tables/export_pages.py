"""Tables of docs (files, method, limits) from the rows of export.py and estimate.py; nothing is measured."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.rows import commits_note, mark
from bench.tables import markdown

MODELS = {  # name in the rows -> in the page
    "timm:mobilenetv2_100": "mobilenetv2_100", "torchvision:resnet18": "resnet18", "torchvision:resnet50": "resnet50",
    "efficientnet_lite0": "EfficientNet-Lite0 (trained)",
    "efficientnet_lite:efficientnet_lite0": "EfficientNet-Lite0 (trained)",
}  # fmt: skip
HEAD = ("float32, ms", "int8, ms", "faster", "than {}", "half the channels")


@dataclass(frozen=True)
class Timed:
    """A network's files in one runtime: milliseconds of an image, and ratios (medians of rounds)."""

    model: str
    float_ms: float
    ours_ms: float
    faster: float
    than_theirs: float
    smaller: float | None
    commit: str


def onnxruntime_block(folder: Path) -> str:
    return _table(_timed(folder, "speed"), "ONNX Runtime's own static quantizer")


def openvino_block(folder: Path) -> str:
    return _table(_timed(folder, "openvino"), "NNCF")


def _table(rows: list[Timed], rival: str) -> str:
    """One network a line; "faster" and what follows are times."""
    head = [title.format(rival) for title in HEAD[: 5 if any(r.smaller for r in rows) else 4]]
    lines = markdown.grid(head, ([MODELS[r.model], *_cells(r)][: len(head) + 1] for r in rows))
    return "\n".join([*lines, "", commits_note(rows)]) + "\n"


def _cells(row: Timed) -> list[str]:
    smaller = "" if row.smaller is None else f"{row.smaller:.2f}"
    return [
        f"{row.float_ms:.2f}", f"{row.ours_ms:.2f}", f"{row.faster:.2f}{mark([row])}", f"{row.than_theirs:.2f}",
        smaller,
    ]  # fmt: skip


def parity_block(folder: Path) -> str:
    """How near files are to their students: the newest row of each network and preset."""
    found = {(row["network"], row["preset"]): row for row in _lines(folder / "export.jsonl") if "file_db" in row}
    presets = list(dict.fromkeys(preset for _, preset in found))
    lines = markdown.grid(
        (f"`{preset}`" for preset in presets),
        (
            [told, *(_parity(found.get((n, p))) for p in presets)]
            for n, told in markdown.NICK.items()
            if _is_in(n, found)
        ),
    )
    images = sum({network: row["images"] for (network, _), row in found.items()}.values())
    note = f"Decibels, and images of equal class in brackets; {images:,} images."
    return "\n".join([*lines, "", note, commits_note(Made(row.get("commit", "")) for row in found.values())]) + "\n"


@dataclass(frozen=True)
class Made:
    """What made a row."""

    commit: str


def _is_in(network: str, found: Iterable[tuple[str, str]]) -> bool:
    return any(name == network for name, _ in found)


def _parity(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    return f"{row['file_db']:.0f} ({row['agreement']:.1f} %){mark([Made(row.get('commit', ''))])}"


def _timed(folder: Path, runtime: str) -> list[Timed]:
    """The newest row of each network, in the order of `MODELS`."""
    found = {row["model"]: row for row in _lines(folder / "export.jsonl") if _is_timed(row, runtime)}
    return [_row(found[name]) for name in MODELS if name in found]


def _row(row: dict[str, Any]) -> Timed:
    figures = (row[key] for key in ("model", "float_ms", "ours_ms", "float/ours", "theirs/ours"))
    return Timed(*figures, row.get("float/smaller"), row.get("commit", ""))


def _is_timed(row: dict[str, Any], runtime: str) -> bool:
    return "float_ms" in row and row.get("runtime", "speed") == runtime


@dataclass(frozen=True)
class Predicted:
    """One student: percent of equal classes, counted and predicted with its interval."""

    network: str
    true: float
    predicted: float
    low: float
    high: float
    commit: str


def estimate_block(folder: Path) -> str:
    """How far predictions were off, network by network."""
    kept = {(r["network"], r["student"]): r for r in _lines(folder / "estimate.jsonl")}
    fields = [f.name for f in dataclasses.fields(Predicted)]
    rows = [Predicted(*(row[name] for name in fields)) for row in kept.values()]
    lines = markdown.grid(
        ("students", "points off, on average", "inside of the 90 % interval"),
        ([markdown.NICK[n], *_misses([r for r in rows if r.network == n])] for n in markdown.networks_of(rows)),
    )
    return "\n".join([*lines, "", commits_note(rows)]) + "\n"


def _misses(rows: list[Predicted]) -> list[str]:
    off = statistics.mean(abs(r.true - r.predicted) for r in rows)
    inside = statistics.mean(r.low <= r.true <= r.high for r in rows)
    return [str(len(rows)), f"{off:.1f}{mark(rows)}", f"{100 * inside:.0f} %"]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
