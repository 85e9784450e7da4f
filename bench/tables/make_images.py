"""Make the images of networks and seeds ahead of the benches, which then find them in the cache.

    python -m bench.tables.make_images --networks resnet20_cifar10 --seeds 0 1 2
    python -m bench.tables.make_images --networks resnet20_cifar10 --kinds inverted matched --set signal.steps=50

Images are those of the preset w4a8 with another kind of signal, and other settings where --set says so.
"""

from __future__ import annotations

from pathlib import Path

from bench import arguments
from bench.networks.made_images import CACHE, images_made
from bench.networks.trained import open_networks
from datafree import Recipe

KINDS = ("inverted", "matched", "adversarial")


def main() -> None:
    parser = arguments.parser(__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", default=["inverted"], choices=KINDS)
    parser.add_argument("--set", nargs="*", default=[], help="recipe settings of the signal, as key=value")
    parser.add_argument("--cache", type=Path, default=CACHE)
    options = parser.parse_args()
    zoo = open_networks(options)
    for network in options.networks:
        model, (example, _) = zoo.load(network), zoo.images(network, 1)
        for kind in options.kinds:
            recipe = Recipe.preset("w4a8").updated([f"signal.kind={kind}", *options.set])
            for seed in options.seeds:
                made = images_made(network, model, recipe, example, seed=seed, cache=options.cache)
                print(f"{network} {kind} seed {seed}: {len(made.images[0])} images, {made.seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
