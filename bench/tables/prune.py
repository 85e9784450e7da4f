"""Accuracy of every pruning preset on real trained networks and real images, beside magnitude and references.

    python -m bench.tables.prune --networks resnet20_cifar10 --seeds 0 1 2

Images are seen by evaluation only, except in the rows "real" and "photographs", the same solver on images that are
never evaluated on. Writes JSON lines (bench/results/prune.jsonl) and bench/results/prune.md; rows there that current
code made are not made again.
"""

from __future__ import annotations

from pathlib import Path

from bench import arguments
from bench.networks.real_images import AS_MANY, REFERENCES
from bench.published.baselines import LAYERWISE, PLAIN, TRIVIAL
from bench.rows import commits_note, mark
from bench.tables import markdown
from bench.tables.accuracy import Row, Way, fill_table, references, written

PRESETS = (
    "slim", "prune30", "prune50", "prune70", "prune80", "prune90", "nm24", "channels10", "channels20", "prune50-w8a8",
    "prune50-w4a8",
)  # fmt: skip
MAGNITUDE = (*PLAIN, "prune.score=magnitude")
METHODS = {
    "magnitude, one threshold": Way(MAGNITUDE, random=False),
    "magnitude, each layer": Way((*MAGNITUDE, "prune.scope=layer"), random=False),
    "paper": Way((*LAYERWISE, "first_last=same", "prune.score=magnitude")),
    "propagated": Way(("signal.kind=propagated", "solve.sequential=false")),
    "each layer alike": Way(("prune.scope=layer",)),
    "ours": Way(),
}
WAYS = {**METHODS, **references(REFERENCES.values())}
SHORT = (("magnitude, one threshold",), ("magnitude, each layer",), ("ours",), AS_MANY)
NOTE = """Points of top-1 lost, ± standard error over images (paired), in brackets agreement with the float network in
percent; mean over seeds; "-" was not run. *magnitude*: smallest weights to zero, by one threshold or each layer alike,
nothing made up for; bits, where there are any, by plain rounding. *paper*: magnitude after free equalization, one
threshold, layers trained on gaussian signal. `slim`:
only channels that do nothing go. *propagated*: our solver, layers one by one, on probes. *each layer
alike*: ours without moving zeros between layers. *real*, a reference: ours on real images that are never evaluated on,
as many as `inverted` makes, 128 and 512, kept as they are or re-standardised at every BatchNorm as ours are; each seed
draws others, where there are others. Defaults were tuned on these evaluation images. Seconds are wall time of
compress(), images given, on a shared machine, for orientation only."""
SHORT_NOTE = """Pruning, points of top-1 lost: smallest weights to zero by one threshold / the same share of every
layer / `datafree` / the same solver on real images, as above; mean over one to three seeds; "-" was not run, or cannot
be. Which, the paper's way, other allocations and seconds: [bench/results/prune.md](../bench/results/prune.md)."""


def main() -> None:
    options = arguments.table_parser(__doc__, presets=PRESETS, rows=WAYS).parse_args()
    fill_table(options, "prune", WAYS, page, blank)


def blank(preset: str, name: str) -> str:
    """Why a cell has no row; "" where it has."""
    if preset == "slim" and name != "ours":
        return "what does nothing is found in the network alone"
    if preset.startswith("channels") and name in (*TRIVIAL, "paper"):
        return "channels go by their output, not by the magnitude of a weight"
    if name == "each layer alike" and preset.startswith("channels"):
        return "the share counts multiply-adds of the whole network"
    if preset.startswith("nm") and name in ("magnitude, one threshold", "each layer alike"):
        return "an n:m pattern takes the same share of every layer"
    return ""


def page(folder: Path) -> str:
    """Two tables a network: methods, and reference rows."""
    rows = written(folder, "prune")
    return markdown.page(NOTE, rows, markdown.full(rows, PRESETS, METHODS, blank))


def block(folder: Path) -> str:
    """The table of README."""
    return markdown.block(SHORT_NOTE, written(folder, "prune"), PRESETS[1:], SHORT)


def slim_block(folder: Path) -> str:
    """Which networks hold channels that do nothing: what is left of the bytes without them."""
    rows = [r for r in written(folder, "prune") if (r.preset, r.row) == ("slim", "ours")]
    lines = markdown.grid(
        ("weights' bytes left", "same class as before", "images"),
        ([markdown.NICK[n], *_left(markdown.select(rows, n, "slim", "ours"))] for n in markdown.networks_of(rows)),
    )
    return "\n".join([*lines, "", commits_note(rows)]) + "\n"


def _left(own: list[Row]) -> list[str]:
    size, same = (markdown.mean(own, field) or 0.0 for field in ("bytes_ratio", "agreement"))
    return [f"{100 * size:.1f} %{mark(own)}", f"{same:.1f} %", f"{own[0].num_images:,}"]


if __name__ == "__main__":
    main()
