"""Accuracy of every pruning preset on real trained networks and real images, beside magnitude and an upper bound.

    python bench/prune.py --networks resnet20_cifar10 --seeds 0 1 2

Images are seen by evaluation only, except in the row "real", the same solver on 128 real images that are never
evaluated on. Writes JSON lines (bench/results/prune.jsonl) and bench/results/prune.md.
"""

from __future__ import annotations

import argparse

import networks
import zoo as quantization
from networks import NETWORKS, append_row, open_networks

PRESETS = (
    "prune30", "prune50", "prune70", "prune80", "prune90", "nm24", "channels10", "channels20", "prune50-w8a8",
    "prune50-w4a8",
)  # fmt: skip
ROWS = {
    "magnitude, each layer": [
        "signal.kind=propagated", "prune.score=magnitude", "prune.scope=layer", "solve.method=nearest",
        "solve.bias_correction=false", "solve.sequential=false",
    ],
    "magnitude, one threshold": [
        "signal.kind=propagated", "prune.score=magnitude", "solve.method=nearest", "solve.bias_correction=false",
        "solve.sequential=false",
    ],
    "paper": ["signal.kind=gaussian", "equalize=free", "prune.score=magnitude", "solve.method=sgd",
              "solve.sequential=false"],
    "propagated": ["signal.kind=propagated", "solve.sequential=false"],
    "each layer alike": ["prune.scope=layer"],
    "ours": [],
    "real": ["signal.kind=loader"],
}  # fmt: skip
NOTE = """Points of top-1 lost, ± standard error over images (paired), in brackets agreement with the float network in
percent; mean over seeds. *magnitude*: smallest weights to zero, nothing made up for. *paper*: magnitude after free
AFCLE, one threshold, layers trained on gaussian signal. *propagated*: our solver, layers one by one, on probes.
*each layer alike*: ours without moving zeros between layers. *real*: ours on 128 real images. Seconds are of
compress(), images given, on one thread of a busy machine.
"""


def main() -> None:
    options = networks.table_parser(__doc__, presets=PRESETS, rows=ROWS, name="prune").parse_args()
    if not options.render:
        _run(options)
    (options.out / "prune.md").write_text(
        quantization.table(quantization.written(options.out, "prune"), NOTE, ROWS, PRESETS)
    )


def _run(options: argparse.Namespace) -> None:
    zoo = open_networks(options)
    for network in options.networks if zoo else ():
        model, (x, y) = zoo.load(network), zoo.images(network)
        count = min(options.images or NETWORKS[network], NETWORKS[network])
        data = list(zip(x[:count].split(100), y[:count].split(100), strict=True))
        for preset in options.presets:
            for name in options.rows:
                if _means_something(preset, name):
                    for seed in options.seeds if "magnitude" not in name else options.seeds[:1]:
                        row = quantization.measure(
                            network, model, preset, name, ROWS[name], seed, data, x[-128:], options
                        )
                        append_row(options.out / f"{options.name}.jsonl", vars(row))
                        print(quantization.line(row), flush=True)


def _means_something(preset: str, name: str) -> bool:
    """Channels have no magnitude rows, and n:m patterns no threshold over layers."""
    if preset.startswith("channels"):
        return name in ("ours", "real", "propagated")
    return not preset.startswith("nm") or name not in ("magnitude, one threshold", "each layer alike")


if __name__ == "__main__":
    main()
