"""The paper's claim: how many weights may become zero at the same accuracy, by magnitude, the paper's way and ours.

    python -m bench.tables.claim

For every method sparsity grows until two points of top-1 are lost; where that is, is read along a straight line between
the last sparsity before and the first one behind. Images are seen by evaluation only. Writes JSON lines
(bench/results/claim.jsonl) and bench/results/claim.md; rows there that current code made are not made again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import arguments
from bench.published.baselines import TRIVIAL
from bench.rows import mark
from bench.tables import markdown, prune
from bench.tables.accuracy import Cell, Row, Subject, Way, fill, written

ALLOWED = 2.0  # points of top-1
WAYS = {name: way for name, way in prune.WAYS.items() if name in (*TRIVIAL, "paper", "ours")}
FEW = (3, 4, 6, 10, 15, 20, 25, 30, 35, 40, 50, 60, 70)
SHARES = {**dict.fromkeys(WAYS, FEW), "ours": (10, 20, 25, 30, 35, 40, 50, 60, 70, 75, 80, 90)}  # percent
FOUR = ["efficientnet_lite0", "resnet20_cifar10", "mobilenetv1_025_imagenet", "mobilenetv2_tiny200"]
NOTE = """# The paper's claim: sparsity at equal accuracy

The share of zero weights at which two points of top-1 are lost, read along straight lines between the figures in
brackets (sparsity: points lost, mean over seeds); standard errors 0.3 to 0.6 points on resnet20, 0.7 to 1.5 on the
others. *magnitude*: smallest weights to zero after BatchNorm is folded, nothing made up for. *paper*: magnitude after
free equalization, layers trained on gaussian signal. *factor*: ours over the better of the two trivial ways; the paper
claims 1.5. Sparsities are stepped through until two points are lost, so that a curve that dips and comes back counts as
lost."""


def main() -> None:
    parser = arguments.table_parser(__doc__, presets=[], rows=WAYS)
    parser.set_defaults(networks=FOUR)
    options = parser.parse_args()
    fill(options, "claim", lambda subject: asked(subject, options), page)


def asked(subject: Subject, options: argparse.Namespace) -> Iterable[Cell]:
    """Cells of a network; none, and a line that says so, where its images have no labels."""
    if subject.has_labels:
        return stepped(subject.name, options, subject.measured_on)
    print(f"skipped: {subject.name}: points lost need labels; give images with --data", flush=True)
    return ()


def stepped(network: str, options: argparse.Namespace, data: str = "") -> Iterator[Cell]:
    """Ever more zeros, until so much is lost that more of them say nothing; on file are the rows on these images."""
    for name in options.rows:
        way = WAYS[name]
        for share in SHARES[name]:
            zeros = Way((*way.settings, f"prune.sparsity={share / 100}"), random=way.random)
            for seed in options.seeds if way.random else options.seeds[:1]:
                yield Cell(f"{share} %", name, zeros, seed, "prune50")
            found = markdown.mean(markdown.select(_rows(options, data), network, f"{share} %", name))
            if found is not None and found > ALLOWED:
                break


def _rows(options: argparse.Namespace, data: str) -> list[Row]:
    return written(options.out, "claim", " ".join(options.set), data)


@dataclass(frozen=True)
class Reach:
    """Where a method has lost what is allowed, percent, and the rows on both sides of it."""

    sparsity: float
    told: str
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        return f"{self.sparsity:.0f} % ({self.told}){mark(self.rows)}"


def reach(rows: list[Row], network: str, name: str) -> Reach | None:
    """The first crossing, from (0 %, 0 lost) on; None where it is not on file."""
    before, below, used = 0.0, 0.0, []
    for share in SHARES[name]:
        own = markdown.select(rows, network, f"{share} %", name)
        lost = markdown.mean(own)
        if lost is not None and lost > ALLOWED:
            crossed = before + (share - before) * (ALLOWED - below) / (lost - below)
            return Reach(crossed, f"{before:g} %: {below:.1f}; {share} %: {lost:.1f}", (*used, *own))
        if lost is not None:
            before, below, used = share, lost, own
    return None


def beside_magnitude(rows: list[Row], network: str, name: str) -> tuple[Reach, Reach] | None:
    """Where a method is, and the better of magnitude in two ways; None where one of the three is not on file."""
    own, trivial = reach(rows, network, name), [reach(rows, network, way) for way in TRIVIAL]
    if own is None or None in trivial:
        return None
    return own, max((r for r in trivial if r), key=lambda r: r.sparsity)


def page(folder: Path) -> str:
    """One table: networks down, methods and the factor across."""
    rows = written(folder, "claim")
    lines = (_line(rows, network) for network in markdown.networks_of(rows))
    return markdown.page(NOTE, rows, ["", *markdown.grid([*WAYS, "factor"], lines)])


def _line(rows: list[Row], network: str) -> list[str]:
    cells = [str(reach(rows, network, name) or "-") for name in WAYS]
    both = beside_magnitude(rows, network, "ours")
    return [markdown.NICK[network], *cells, f"{both[0].sparsity / both[1].sparsity:.1f}" if both else "-"]


if __name__ == "__main__":
    main()
