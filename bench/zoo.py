"""Accuracy of every quantization preset on real trained networks and real images, beside baselines and an upper bound.

    python bench/zoo.py                                   # everything: about an hour on two cores
    python bench/zoo.py --networks resnet20_cifar10 --presets w4a8 w4a4 --rows ours real --seeds 0 1 2

The networks and images are not part of this repository: the folder `../shared/zoo` (or --zoo) holds them. Images are
seen by evaluation only, except in the row "real", the same solver on 128 images that are never evaluated on.
Writes JSON lines and a Markdown table to bench/results/.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

import networks
from baselines import PLAIN
from datafree import Recipe, compress, evaluate
from datafree.recipe import Made
from networks import NETWORKS, append_row, images_made, open_networks, rows_on_file

PRESETS = ("w8a8", "w8a8-tensor", "w6a6", "w5a5", "w4a8", "w4a8-tensor", "w4a4", "w3a8", "w3a3")
ROWS = {
    "plain rounding": PLAIN,
    "paper": ["signal.kind=gaussian", "solve.sequential=false", "equalize=free", "solve.method=sgd"],
    "gaussian": ["signal.kind=gaussian", "solve.sequential=false"],
    "propagated": ["signal.kind=propagated", "solve.sequential=false"],
    "ours": [],
    "real": ["signal.kind=loader"],
}


NOTE = """Points of top-1 lost, ± standard error over images (paired), in brackets agreement with the float
network in percent; mean over seeds. *real*: the same solver on 128 real images, the upper bound for anything
data-free. *paper*: gaussian signal, free AFCLE, layer-wise training. *gaussian*: our solver
on the paper's signal. *propagated*: layers solved one by one on images sent once through the network; rows made before
scales against H, polish and ranges by output error were added. Seconds are wall time of compress() on one thread of a
busy machine, for orientation only.
"""


@dataclass(frozen=True)
class Row:
    """One compression, evaluated. Accuracies are percent, `lost` is points, `seconds` are of compress()."""

    network: str
    preset: str
    row: str
    seed: int
    num_images: int
    float_top1: float
    top1: float
    lost: float
    lost_error: float
    agreement: float
    bytes_ratio: float
    seconds: float
    image_seconds: float = 0.0  # of making the images, once for all recipes of a network and seed


def main() -> None:
    options = networks.table_parser(__doc__, presets=PRESETS, rows=ROWS, name="zoo").parse_args()
    if options.render:
        (options.out / "zoo.md").write_text(table(written(options.out, "zoo"), NOTE, ROWS, PRESETS))
        return
    zoo = open_networks(options)
    for network in options.networks if zoo else ():
        model = zoo.load(network)
        x, y = zoo.images(network)
        count = min(options.images or NETWORKS[network], NETWORKS[network])
        data = list(zip(x[:count].split(100), y[:count].split(100), strict=True))
        for preset in options.presets:
            for name in options.rows:
                for seed in options.seeds if name != "plain rounding" else options.seeds[:1]:
                    row = measure(network, model, preset, name, ROWS[name], seed, data, x[-128:], options)
                    append_row(options.out / f"{options.name}.jsonl", vars(row))
                    print(line(row), flush=True)
    (options.out / "zoo.md").write_text(table(written(options.out, "zoo"), NOTE, ROWS, PRESETS))


def written(folder: Path, name: str) -> list[Row]:
    """All rows on file under names that begin so, the last one of each network, preset, method and seed."""
    paths = sorted(folder.glob(f"{name}*.jsonl"))
    return rows_on_file(paths, Row, lambda r: (r.network, r.preset, r.row, r.seed))


def measure(network, model, preset, name, settings, seed, data, real, options) -> Row:
    """Compress once with a preset and settings, and evaluate."""
    recipe = Recipe.preset(preset).updated([*settings, *options.set])
    example, images, image_seconds = data[0][0][:1], (real,) if name == "real" else None, 0.0
    if isinstance(recipe.signal, Made):
        made = images_made(network, model, recipe, example, seed=seed, cache=options.cache)
        images, image_seconds = made.images, made.seconds
    start = time.perf_counter()
    run = compress(model, recipe, example, seed=seed, images=images)
    seconds = time.perf_counter() - start
    result = evaluate(run, data)
    return Row(
        network, preset, name, seed, result.num_images, result.float_top1, result.top1, result.lost,
        result.lost_error, result.agreement, run.summary.bytes / run.summary.float_bytes, round(seconds, 1),
        round(image_seconds, 1),
    )  # fmt: skip


def line(r: Row) -> str:
    return (
        f"{r.network} {r.preset} {r.row} seed {r.seed}: top-1 {r.top1:.1f} of {r.float_top1:.1f} % (lost {r.lost:.1f} "
        f"± {r.lost_error:.1f} points, {r.num_images} images), agreement {r.agreement:.1f} %, {r.seconds:.1f} s"
    )


def table(rows: list[Row], note: str, methods: Iterable[str], presets: Iterable[str]) -> str:
    """Markdown: one table a network, presets down, methods across; points of top-1 lost, mean over seeds."""
    seeds = ", ".join(str(s) for s in sorted({r.seed for r in rows}))
    text = [f"Seeds {seeds}, torch {torch.__version__.split('+')[0]}. {note}"]
    for network in [n for n in NETWORKS if any(r.network == n for r in rows)]:
        here = [r for r in rows if r.network == network]
        names = [n for n in methods if any(r.row == n for r in here)]
        text.append(f"\n### {network}: float top-1 {here[0].float_top1:.1f} % on {here[0].num_images} images\n")
        text.append("| | " + " | ".join(names) + " | seconds (ours) |\n|---|" + "---|" * (len(names) + 1))
        for preset in [p for p in presets if any(r.preset == p for r in here)]:
            cells = [_cell([r for r in here if r.preset == preset and r.row == n]) for n in names]
            own = [r.seconds for r in here if r.preset == preset and r.row == "ours"]
            cells.append(f"{statistics.mean(own):.0f}" if own else "")
            text.append(f"| {preset} | " + " | ".join(cells) + " |")
    return "\n".join(text) + "\n"


def _cell(rows: list[Row]) -> str:
    if not rows:
        return ""
    lost, agreement = (statistics.mean(getattr(r, k) for r in rows) for k in ("lost", "agreement"))
    return f"{lost:.1f} ± {statistics.mean(r.lost_error for r in rows):.1f} ({agreement:.0f})"


if __name__ == "__main__":
    main()
