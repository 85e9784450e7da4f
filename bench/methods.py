"""Every signal with every solver: top-1 lost and seconds, at one preset, on trained networks and real images.

    python bench/methods.py --networks resnet20_cifar10 --presets w4a8 w4a4

Layers are solved one by one, except in the last row, `closed` in sequence; equalization is off. Images of `matched` and
`inverted` are made once for each network. The row "loader" is 128 real images that are never evaluated on. Writes JSON
lines and bench/results/methods.md.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

import networks
from datafree import Recipe, compress, evaluate
from datafree.recipe import Made
from networks import NETWORKS, append_row, open_networks

SIGNALS = ("gaussian", "propagated", "matched", "inverted", "loader")
SOLVERS = {
    "nearest": ["solve.method=nearest"], "squant": ["solve.method=squant"], "adaround": ["solve.method=adaround"],
    "sgd": ["solve.method=sgd"], "closed": ["solve.method=closed"],
    "closed, in sequence": ["solve.method=closed", "solve.sequential=true"],
}  # fmt: skip


def main() -> None:
    options = _options()
    zoo = open_networks(options)
    for network in options.networks if zoo else ():
        model, (x, y) = zoo.load(network), zoo.images(network)
        count = min(options.images, NETWORKS[network])
        data = list(zip(x[:count].split(100), y[:count].split(100), strict=True))
        kept = {"loader": ((x[-128:],), 0.0)}
        for preset in options.presets:
            for signal in options.signals:
                for name, settings in SOLVERS.items():
                    base = ["equalize=off", "solve.sequential=false", f"signal.kind={signal}"]
                    recipe = Recipe.preset(preset).updated([*base, *settings])
                    if isinstance(recipe.signal, Made) and signal not in kept:
                        kept[signal] = _made(model, recipe, x[:1])
                    images, image_seconds = kept.get(signal, (None, 0.0))
                    start = time.perf_counter()
                    run = compress(model, recipe, x[:1], images=images)
                    seconds = time.perf_counter() - start
                    found = evaluate(run, data)
                    row = {
                        "network": network, "preset": preset, "signal": signal, "solver": name, "seed": 0,
                        "num_images": count, "lost": found.lost, "lost_error": found.lost_error,
                        "agreement": found.agreement, "seconds": round(seconds, 1),
                        "image_seconds": round(image_seconds, 1),
                    }  # fmt: skip
                    append_row(options.out / "methods.jsonl", row)
                    print(row, flush=True)
    lines = (options.out / "methods.jsonl").read_text().splitlines()
    (options.out / "methods.md").write_text(table([json.loads(line) for line in lines]))


def _made(model, recipe, example) -> tuple[tuple[torch.Tensor, ...], float]:
    start = time.perf_counter()
    cheapest = Recipe.preset("w8a8").model_copy(update={"signal": recipe.signal})
    return compress(model, cheapest, example).images, time.perf_counter() - start


def table(rows: list[dict]) -> str:
    """Markdown: one table a network and preset, solvers down, signals across."""
    text = ["Points of top-1 lost ± standard error over images (paired), in brackets seconds of compress() without"]
    text += ["making images; seed 0. `matched` 40 steps, `inverted` 200; *loader*: 128 real images.\n"]
    for network, preset in dict.fromkeys((r["network"], r["preset"]) for r in rows):
        here = {(r["solver"], r["signal"]): r for r in rows if (r["network"], r["preset"]) == (network, preset)}
        count = next(iter(here.values()))["num_images"]
        made = {s: r["image_seconds"] for (_, s), r in here.items() if r["image_seconds"]}
        text.append(
            f"### {network}, {preset}, {count} images" + "".join(f"; {s}: {t} s" for s, t in made.items()) + "\n"
        )
        text.append("| | " + " | ".join(SIGNALS) + " |\n|---|" + "---|" * len(SIGNALS))
        for solver in SOLVERS:
            text.append(f"| {solver} | " + " | ".join(_cell(here.get((solver, s))) for s in SIGNALS) + " |")
        text.append("")
    return "\n".join(text)


def _cell(row: dict | None) -> str:
    return "" if row is None else f"{row['lost']:.1f} ± {row['lost_error']:.1f} ({row['seconds']:.0f})"


def _options() -> argparse.Namespace:
    parser = networks.parser(__doc__)
    parser.add_argument("--presets", nargs="+", default=["w4a8"])
    parser.add_argument("--signals", nargs="+", default=list(SIGNALS), choices=list(SIGNALS))
    parser.add_argument("--images", type=int, default=1000)
    return parser.parse_args()


if __name__ == "__main__":
    main()
