"""The price of folding: what copies without BatchNorm lose, beside BatchNorm's own signal and real images.

    python -m bench.tables.folding --networks resnet20_cifar10 mobilenetv1_025_imagenet

Copies are folded as other tools do it (torch.fx.experimental.optimization.fuse). Images are seen by evaluation only,
except in the row "real". Writes JSON lines (bench/results/folding.jsonl) and bench/results/folding.md; rows there that
current code made are not made again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

from torch import nn

from bench import arguments
from bench.networks.real_images import Real
from bench.networks.trained import LITE
from bench.tables import markdown
from bench.tables.accuracy import Way, as_it_is, fill_table, written
from datafree.recipe import Inverted, Propagated
from datafree.signals import SIGNALS, propagated

PRESETS = ("w8a8", "w4a8")
REAL = Real("real", 128, False), Real("real", None, False)  # 128, and of small images as many as ours makes, 128 too
KEPT, FOLDED, UNTOLD, UNMOVED = "BatchNorm kept", "folded", "folded, scale not told", "folded, images not moved"
WAYS = {
    KEPT: Way(),
    FOLDED: Way(),
    UNTOLD: Way(),
    UNMOVED: Way(),
    **{f"folded, {real.name}": Way(real.settings, real) for real in REAL},
}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PIXELS = {  # how each network's pixels in 0..1 are normalised: mean, std
    LITE: ((127 / 255,) * 3, (128 / 255,) * 3),
    "resnet20_cifar10": IMAGENET,
    "mobilenetv1_025_imagenet": ((0.5,) * 3, (0.5,) * 3),
    "mobilenetv2_tiny200": IMAGENET,
    "resnet8_cifar10": ((0.0,) * 3, (1 / 255,) * 3),
    "mobilenetv1_025_vww": ((0.0,) * 3, (1.0,) * 3),
}
NOTE = """Points of top-1 lost, ± standard error over images (paired), in brackets agreement with the float network in
percent. *BatchNorm kept*: the preset on the network as it is. *folded*: on a copy whose BatchNorm is folded, told how
pixels are normalised (`--mean`, `--std`): images are varied as photographs are, and half of them moved towards random
classes. *not told*: nothing is said of the scale. *not moved*: all images are procedural, as they come. *real*: on real
images that are never evaluated on."""


def folded(model: nn.Module) -> nn.Module:
    """A copy whose BatchNorm is folded."""
    from torch.fx.experimental.optimization import fuse  # warns where it is imported

    return fuse(model)


def told(network: str, model: nn.Module) -> nn.Module:
    """The folded copy, and how its pixels are normalised."""
    mean, std = PIXELS[network]
    copy = folded(model)
    vars(copy)["pretrained_cfg"] = {"mean": mean, "std": std}
    return copy


@contextmanager
def unmoved() -> Iterator[None]:
    """Images as they are where there is no BatchNorm, too."""
    shipped = dict(SIGNALS)
    SIGNALS.update({kind: replace(SIGNALS[kind], make=propagated) for kind in (Propagated, Inverted)})
    try:
        yield
    finally:
        SIGNALS.update(shipped)


def main() -> None:
    options = arguments.table_parser(__doc__, presets=PRESETS, rows=WAYS).parse_args()
    networks, rows, cache = list(options.networks), list(options.rows), options.cache
    for network, name in product(networks, rows):
        options.networks, options.rows, options.cache = [network], [name], cache / "folding" / name
        change = {KEPT: as_it_is, UNTOLD: folded}.get(name, partial(told, network))
        with unmoved() if name == UNMOVED else nullcontext():
            fill_table(options, "folding", WAYS, page, change=change)


def page(folder: Path) -> str:
    """One table a network."""
    rows = written(folder, "folding")
    return markdown.page(NOTE, rows, markdown.full(rows, PRESETS, WAYS))


if __name__ == "__main__":
    main()
