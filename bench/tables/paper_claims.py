"""The paper's three claims, answered from rows: points over the best before it, sparsity, cost at equal accuracy."""

from __future__ import annotations

from collections.abc import Iterable
from math import hypot
from pathlib import Path
from typing import Any

from bench.rows import mark
from bench.tables import accuracy, claim, markdown
from bench.tables.paper_parts import ROUNDED

GAINS = (("8 bits", "w8a8-tensor", "+0.34"), ("5 bits", "w5a5-tensor", "+28.5"))
CHEAPER = (("DI", "450"), ("AKD", "14"))
BEST = ("paper", "ours")
FAMILIES = ("DI, our images", "DI", "AKD", "paper, per tensor", "paper", "ours")
NONE = "-"
NOTE = """*Points over the best before*: top-1 of the paper's way (and of ours, per tensor as well) minus that of the
best of plain rounding, DFQ, SQuant and ZeroQ, one scale a tensor, first and last layer like the others; ± is the
standard error as if both had been measured on other images. *Times the sparsity*: where two points are lost, over the
better of magnitude with one threshold and by layer (bench/tables/claim.py). *Passes*: of the cheapest DI, or AKD, that
reaches the top-1 of the paper's student (of ours, the cheapest of them) at W4A4 per channel, as a multiple of that
student's; in brackets both top-1; ">" where none reaches it, with the dearest's passes and the best top-1. "-" was
not run."""


def claims(rows: Iterable[Any], folder: Path) -> list[str]:
    """Lines of one table: claims down, networks across.

    Args:
        folder: also holds the rows of claim.py, which steps through sparsities.
    """
    rows = [r for r in rows if not r.rejected]
    networks = markdown.networks_of(rows)
    zeros = accuracy.written(folder, "claim")
    lines = []
    for says, preset, told in GAINS:
        for who in BEST:
            cells = [gain(rows, n, preset, who) for n in networks]
            lines.append([f"points over the best before, {says}, {who}", _claimed(who, told), *cells])
    for who in BEST:
        cells = [factor(zeros, n, who) for n in networks]
        lines.append([f"times the sparsity of magnitude, {who}", _claimed(who, "1.5"), *cells])
    for family, told in CHEAPER:
        for who in BEST:
            cells = [times(rows, n, family, who) for n in networks]
            lines.append([f"passes of {family} to the accuracy of {who}", _claimed(who, told), *cells])
    return markdown.grid(["the paper says", *(markdown.NICK[n] for n in networks)], lines)


def _claimed(who: str, told: str) -> str:
    return told if who == "paper" else ""


def gain(rows: list[Any], network: str, preset: str, who: str) -> str:
    """Points of `who` over the best of what was there before the paper."""
    here = {r.method: r for r in rows if (r.part, r.network, r.preset) == ("bits", network, preset)}
    if not {who, *ROUNDED} <= set(here):
        return NONE
    best, own = max((here[m] for m in ROUNDED), key=lambda r: r.top1), here[who]
    points, error = own.top1 - best.top1, hypot(own.lost_error, best.lost_error)
    return f"{points:+.1f} ± {error:.1f} over {best.method}{mark([own, best])}"


def factor(rows: list[accuracy.Row], network: str, who: str) -> str:
    """Sparsity at which two points are lost, over that of the better magnitude."""
    both = claim.beside_magnitude(rows, network, who)
    if both is None:
        return NONE
    own, best = both
    old = mark([*own.rows, *best.rows])
    return f"{own.sparsity / best.sparsity:.1f} ({own.sparsity:.0f} % / {best.sparsity:.0f} %){old}"


def times(rows: list[Any], network: str, family: str, who: str) -> str:
    """How many times the passes a generative method takes to the same top-1."""
    here = [r for r in rows if (r.part, r.network) == ("cost", network)]
    own = [r for r in here if r.method == who or (who == "ours" and r.method.startswith("ours"))]
    theirs = [r for r in here if family_of(r.method) == family]
    if not own or not theirs:
        return NONE
    start = min(own, key=lambda r: r.forward_passes)
    reached = [r for r in theirs if r.top1 >= start.top1]
    if reached:
        first = min(reached, key=lambda r: r.forward_passes)
        share = first.forward_passes / start.forward_passes
        return f"{share:.1f} ({first.top1:.1f} / {start.top1:.1f}){mark([first, start])}"
    most, best = max(theirs, key=lambda r: r.forward_passes), max(theirs, key=lambda r: r.top1)
    share = most.forward_passes / start.forward_passes
    return f"> {share:.1f} ({best.top1:.1f} / {start.top1:.1f}){mark([most, best, start])}"


def family_of(method: str) -> str:
    """The line of the plot a point of `cost` is on."""
    return next((f for f in FAMILIES if method.startswith(f)), method)
