"""The paper's comparisons, rebuilt: accuracy against cost, bits, sparsity, and generative methods started from ours.

    python bench/paper.py                                  # two digits networks, minutes
    python bench/paper.py --networks resnet20_cifar10      # with the folder of trained networks

Four parts, each a table and a plot in bench/results/: `cost` (the paper's Figure 2: ours, AKD, DI), `bits` (8 to 4 bits
beside DFQ, ZeroQ, SQuant and plain rounding), `sparsity`, and `combination` (DI and AKD started from plain rounding or
magnitude, and from ours). Cost is counted while it is spent: forward passes of one image through the float network, in
multiply-adds (datafree.counting). Rows go to bench/results/paper.jsonl as they are done; those there are not run again.
What the paper claims and what came out: docs/paper.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import networks
import zeroq
from baselines import BASELINES, PRUNING
from datafree import Recipe, compress
from datafree.capture import trace
from datafree.counting import counted
from datafree.evaluate import evaluate_models, layer_macs
from datafree.recipe import Made
from networks import CACHE, NETWORKS, append_row, images_made, open_networks, rows_on_file
from paper_plots import plots, tables

PLAIN = ["equalize=off", "solve.method=nearest", "solve.sequential=false"]  # bias corrected, ranges clipped
MAGNITUDE = ["prune.score=magnitude", "solve.method=nearest", "solve.bias_correction=false", "solve.sequential=false"]
ALONE = ["signal.kind=propagated", "solve.sequential=false"]
DI = ["signal.kind=inverted", "signal.setting=cifar10", "signal.images=64"]
AKD = ["distill.images=adversarial"]
BITS = ("w8a8", "w8a8-tensor", "w6a6", "w5a5", "w4a8", "w4a4")
SPARSITY = (0.3, 0.5, 0.7, 0.8, 0.9)
COMBINED = ("w3a8", "w4a4", "prune80")
Key = tuple[str, str, str, str, int]


@dataclass(frozen=True)
class Row:
    """One student. Accuracies percent, `lost` points, cost in forward passes of one image and in multiply-adds."""

    part: str
    network: str
    method: str
    preset: str
    seed: int
    num_images: int
    float_top1: float
    top1: float
    lost: float
    lost_error: float
    agreement: float
    forward_passes: float
    macs: int
    seconds: float
    peak_memory_mb: float = 0.0  # of the process so far
    note: str = ""

    @property
    def key(self) -> Key:
        return (self.part, self.network, self.method, self.preset, self.seed)


@dataclass
class Bench:
    """One network under measurement; images of each kind are made once and kept in `cache`."""

    name: str
    model: nn.Module
    example: torch.Tensor
    data: list[tuple[torch.Tensor, torch.Tensor]]
    seed: int
    float_macs: int
    cache: Path

    def run(self, part: str, method: str, preset: str, settings: Iterable[str]) -> Row:
        """Compress with a preset and settings, images made once and charged every time."""
        recipe = Recipe.preset(preset).updated(list(settings))
        images, macs, seconds = None, 0, 0.0
        if isinstance(recipe.signal, Made):
            made = images_made(
                self.name, self.model, recipe, self.example, seed=self.seed, cache=self.cache, on_step=_say
            )
            images, macs, seconds = made.images, made.macs, made.seconds
        start = time.perf_counter()
        done = compress(self.model, recipe, self.example, seed=self.seed, images=images)
        seconds += time.perf_counter() - start
        macs += done.summary.spent_macs
        peak = done.summary.peak_memory_bytes / 2**20
        return self._row(part, method, preset, done.student, macs, seconds, peak, done.summary.distilled)

    def baseline(self, part: str, method: str, preset: str, make: Callable[[], nn.Module]) -> Row:
        """A method of `baselines`, counted from outside."""
        start = time.perf_counter()
        with counted() as spent:
            student = make()
        return self._row(part, method, preset, student, spent.macs, time.perf_counter() - start, 0.0, "")

    def _row(self, part, method, preset, student, macs, seconds, peak, note) -> Row:
        found = evaluate_models(student, self.model, self.data, layers=False)
        return Row(
            part, self.name, method, preset, self.seed, found.num_images, found.float_top1, found.top1, found.lost,
            found.lost_error, found.agreement, macs / self.float_macs, macs, round(seconds, 1), round(peak, 1), note,
        )  # fmt: skip


def _say(what: str, done: int, total: int) -> None:
    if done % 100 == 0:
        print(f"  {what}: {done} of {total}", flush=True)


def cost(bench: Bench) -> Iterator[tuple[str, str, Callable[[], Row]]]:
    """Figure 2: top-1 at 4 bits against forward passes. Ours without images, and with images of more and more steps."""
    preset = "w4a4"
    points = [("ours", "propagated", ALONE)]
    points += [("ours", f"{n} steps", ["signal.kind=inverted", f"signal.steps={n}"]) for n in (25, 50, 100, 200)]
    plain = [*PLAIN, "signal.kind=propagated"]
    points += [("AKD", f"{n} steps", [*plain, *AKD, f"distill.steps={n}"]) for n in (10, 70, 500)]
    points += [("DI", f"{n} steps", [*PLAIN, *DI, f"distill.steps={n}"]) for n in (50, 200)]
    for method, how, settings in points:
        name = f"{method}, {how}"
        yield name, preset, lambda name=name, settings=settings: bench.run("cost", name, preset, settings)


def bits(bench: Bench) -> Iterator[tuple[str, str, Callable[[], Row]]]:
    """8 to 4 bits: published methods of one rounding, and ours."""
    kept: list[tuple[torch.Tensor, int, float]] = []
    for preset in BITS:
        recipe = Recipe.preset(preset)
        widths = {"bits_w": recipe.weights.bits, "bits_a": recipe.activations.bits}
        given = {**widths, "per": recipe.weights.per, "ends": recipe.ends, "seed": bench.seed}
        for method in ("plain rounding", "DFQ", "SQuant"):
            make = lambda method=method, given=given: BASELINES[method](bench.model, bench.example, **given)  # noqa: E731
            yield method, preset, lambda m=method, p=preset, make=make: bench.baseline("bits", m, p, make)
        yield "ZeroQ", preset, lambda p=preset, given=given: _zeroq(bench, p, given, kept)
        yield "ours, propagated", preset, lambda p=preset: bench.run("bits", "ours, propagated", p, ALONE)
        yield "ours", preset, lambda p=preset: bench.run("bits", "ours", p, [])


def _zeroq(bench: Bench, preset: str, given: dict, kept: list) -> Row:
    """Its images are made once and charged every time."""
    if not kept:
        start = time.perf_counter()
        with counted() as spent:
            images = zeroq.distill_images(bench.model, bench.example, seed=bench.seed)
        kept.append((images, spent.macs, time.perf_counter() - start))
    images, macs, seconds = kept[0]
    made = lambda: BASELINES["ZeroQ"](bench.model, bench.example, images=images, **given)  # noqa: E731
    row = bench.baseline("bits", "ZeroQ", preset, made)
    total = row.macs + macs
    return Row(
        **{**vars(row), "macs": total, "forward_passes": total / bench.float_macs, "seconds": row.seconds + seconds}
    )


def sparsity(bench: Bench) -> Iterator[tuple[str, str, Callable[[], Row]]]:
    """Zeros anywhere: magnitude in two ways, and ours."""
    for share in SPARSITY:
        preset = f"prune{round(100 * share)}"
        for method, baseline in PRUNING.items():
            make = lambda b=baseline, s=share: b(bench.model, bench.example, sparsity=s, seed=bench.seed)  # noqa: E731
            yield method, preset, lambda m=method, p=preset, make=make: bench.baseline("sparsity", m, p, make)
        yield "ours, propagated", preset, lambda p=preset: bench.run("sparsity", "ours, propagated", p, ALONE)
        yield "ours", preset, lambda p=preset: bench.run("sparsity", "ours", p, [])


def combination(bench: Bench) -> Iterator[tuple[str, str, Callable[[], Row]]]:
    """DI and AKD as distillation, from plain rounding or magnitude, and from the layer-wise student."""
    ways = {
        "none": [],
        "DI": ["distill.images=inverted", "distill.steps=100"],
        "AKD": [*AKD, "distill.steps=100"],
    }
    for preset in COMBINED:
        start = MAGNITUDE if preset.startswith("prune") else PLAIN
        for how, distilled in ways.items():
            base = [*start, *(DI if how == "DI" else ["signal.kind=propagated"]), *distilled]
            for method, settings in ((f"{how} from plain", base), (f"{how} from ours", distilled)):
                run = lambda m=method, p=preset, s=settings: bench.run("combination", m, p, s)  # noqa: E731
                yield method, preset, run


PARTS = {"cost": cost, "bits": bits, "sparsity": sparsity, "combination": combination}


def main() -> None:
    parser = networks.parser(__doc__)
    parser.set_defaults(networks=["resnet_digits", "mobilenet_digits"])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=1000, help="evaluate on so many at most")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--render", action="store_true", help="only tables and plots of the rows on file")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "paper.jsonl"
    zoo = None if options.render else open_networks(options)
    for name in options.networks if zoo else ():
        x, y = zoo.images(name)
        count = min(options.images, NETWORKS[name])
        data = list(zip(x[:count].split(100), y[:count].split(100), strict=True))
        model = zoo.load(name)
        macs = sum(layer_macs(trace(model, x[:1])).values())
        bench = Bench(name, model, x[:1], data, options.seed, macs, options.cache)
        for part in options.parts:
            _measure(part, bench, path)
    rows = written(path)
    (options.out / "paper.md").write_text(tables(rows))
    plots(rows, options.out)


def _measure(part: str, bench: Bench, path: Path) -> None:
    done = {row.key for row in written(path)}
    for method, preset, run in PARTS[part](bench):
        if (part, bench.name, method, preset, bench.seed) in done:
            continue
        row = run()
        append_row(path, vars(row))
        cost = f"{row.forward_passes:,.0f} forward passes, {row.seconds:.0f} s"
        print(
            f"{part} {bench.name} {preset} {method}: top-1 {row.top1:.1f} of {row.float_top1:.1f} % "
            f"± {row.lost_error:.1f}, {row.num_images} images; {cost}; {row.note}",
            flush=True,
        )


def written(path: Path) -> list[Row]:
    """All rows on file, the last of each kind."""
    return rows_on_file([path], Row, lambda row: row.key)


if __name__ == "__main__":
    main()
