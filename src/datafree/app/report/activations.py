"""How the values that each layer reads are spread, beside the range that its integers reach."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from datafree import graph as g
from datafree.app.report.grids import input_grids, real_range
from datafree.records import QParams
from datafree.run import Run
from datafree.signals import Signal, walk_teacher

BINS = 48
MOST = 2**18  # values looked at, evenly spread


@dataclass(frozen=True)
class Histogram:
    """What one layer reads, in the float network.

    edges: one more than counts. low, high: what the integers reach. outside: percent of the values beyond that.
    """

    name: str
    bits: int
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    low: float
    high: float
    outside: float


def histograms(run: Run, signal: Signal) -> list[Histogram]:
    """One for each layer that reads integers, in the order they run in."""
    grids, found = input_grids(run.student), []
    readers: dict[str, list[str]] = {}
    for layer, node in g.layers(run.teacher).items():
        if layer in grids:
            readers.setdefault(g.operand(g.node_of(run.teacher, node.node)).name, []).append(layer)
    with torch.no_grad():
        for node, value in walk_teacher(run.teacher, signal):
            found += [_histogram(name, value, grids[name]) for name in readers.get(node.name, ())]
    return found


def _histogram(name: str, values: Tensor, grid: QParams) -> Histogram:
    flat = values.detach().flatten()
    flat = flat[:: max(1, len(flat) // MOST)].float()
    low, high = real_range(grid)
    least, most = min(low, float(flat.min())), max(high, float(flat.max()))
    edges = torch.linspace(least, max(most, least + 1e-9), BINS + 1)
    counts = torch.histc(flat, BINS, float(edges[0]), float(edges[-1]))
    outside = 100 * float(((flat < low - 1e-6) | (flat > high + 1e-6)).double().mean())
    shown = tuple(float(f"{edge:.4g}") for edge in edges)
    return Histogram(name, grid.bits, shown, tuple(map(int, counts)), low, high, outside)
