"""What is read at the end of `datafree compress MODEL --out FILE`: at most eight lines, the last a piece of advice."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from datafree import graph as g
from datafree.app.latency import timed
from datafree.app.sentences import RANDOM_WEIGHTS, slimmed_text
from datafree.app.tables import estimate_text, num_bytes, share
from datafree.export import Exporter, Written
from datafree.models import num_file_bytes
from datafree.run import Run

TURNS = 9  # in which both files run
ENOUGH = 90  # percent of images that keep their class; for less there is advice
FEW = 64 * 1024  # bytes of weights; what a file says of them takes as much


@dataclass(frozen=True)
class Speed:
    """Milliseconds of one image, medians over turns; times: the median of float / student within a turn."""

    float_ms: float
    student_ms: float
    times: float
    threads: int


def time_beside_float(done: Run, file: Path, exporter: Exporter, options: Any, threads: int) -> Speed | None:
    """Run the file and the float network's in turns; None where running says nothing of speed.

    The float network's file is the one it was read from, or is written for this.
    """
    if exporter.runtime is None or "simulated" in exporter.runtime.name:
        return None
    size = g.shape(g.placeholders(done.teacher)[0])[1:]
    with tempfile.TemporaryDirectory() as scratch:
        other = Path(done.summary.source or Path(scratch) / f"float{exporter.suffix}")
        if not done.summary.source:
            exporter.write(done, other, replace(options, float32=True), force=False)
        runs = [exporter.runtime.open(path, threads, 1, size) for path in (other, file)]
        turns = [[timed(run) for run in runs] for _ in range(TURNS)]
    first, second = zip(*turns, strict=True)
    ratios = [a / b for a, b in turns]
    return Speed(1e3 * median(first), 1e3 * median(second), median(ratios), threads)


def verdict(done: Run, file: Path, written: Written, speed: Speed | None, warnings: Sequence[str]) -> dict[str, str]:
    """Sizes, speed, predicted agreement, what checking the file found, and what to do next."""
    size, whole = num_file_bytes(file), _float_bytes(done)
    gone = done.summary.slimmed
    shown = {
        "size": f"{num_bytes(size)}, {share(size, whole)} of the float network's {num_bytes(whole)}",
        "did nothing": slimmed_text(gone, done.summary.float_bytes // 4) if gone.removed else "",
        "speed": "" if speed is None else _speed_text(speed),
        "agreement": estimate_text(done.summary.estimate),
        **{name: written.findings.get(name, "") for name in ("file against student", "in float there")},
        "advice": advice(done, size, whole, speed, warnings),
    }
    return {name: text for name, text in shown.items() if text}


def _float_bytes(done: Run) -> int:
    """Of the file the network was read from, or of its weights."""
    source = Path(done.summary.source) if done.summary.source else None
    return num_file_bytes(source) if source and source.is_file() else done.summary.float_bytes


def _speed_text(found: Speed) -> str:
    threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
    return f"{found.times:.2f} times float: {found.float_ms:.2f} -> {found.student_ms:.2f} ms an image, {threads}"


def advice(done: Run, size: int, whole: int, speed: Speed | None, warnings: Sequence[str]) -> str:
    """The one thing that is worth doing next; "" = nothing."""
    summary, recipe = done.summary, done.recipe
    if size > whole or (summary.float_bytes < FEW and size > whole / 2):
        return "the network is tiny: what a file says of its integers takes more than they save; keep the float file"
    if RANDOM_WEIGHTS in warnings:
        return RANDOM_WEIGHTS
    if summary.estimate and summary.estimate.agreement < ENOUGH:
        return _gentler(recipe.weights.bits, recipe.activations.bits, pruned=recipe.prune is not None)
    if speed and speed.times < 1:
        return "slower than float here: see `in float there`, and `datafree export -v` of a run directory for each node"
    return next(iter(warnings), "")


def _gentler(weights: int | None, activations: int | None, *, pruned: bool) -> str:
    if pruned:
        return "many answers change: try a lower prune.sparsity"
    if activations and activations < 8:
        return "many answers change: try --recipe w4a8, whose layers read 8 bits"
    if weights and weights < 8:
        return "many answers change: try --recipe w8a8"
    return "many answers change: try --set weights.bits=null, or the layers that -v shows with --set layers.NAME=keep"
