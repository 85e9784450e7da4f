"""The paper's comparisons, rebuilt: accuracy against cost, bits, sparsity, and generative methods from other starts.

    python -m bench.tables.paper                              # EfficientNet-Lite0 (days), two digits networks (hours)
    python -m bench.tables.paper --networks resnet20_cifar10 --parts bits cost     # with the folder of trained networks
    python -m bench.tables.paper --parts combination --presets prune50 --methods "none" "DI, our images"
    python -m bench.tables.paper --quick                                           # without what takes longest

Four parts, each a table in bench/results/paper.md: `cost` (the paper's Figure 2), `bits` (8 to 4 bits, per channel and
per tensor), `sparsity`, and `combination` (Deep Inversion, DI, and AKD started from plain rounding or magnitude, from
the paper's students and from ours). What they hold: paper_parts.py. On top of the page, and in docs/paper.md, the
paper's three claims are answered from the rows: paper_claims.py. Cost is counted while it is spent: forward passes of
one image through the float network, in multiply-adds, images charged every time though they are made once. Rows go to
bench/results/paper.jsonl as they are done; those there that current code made are not made again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from bench import arguments
from bench.networks.made_images import CACHE, Images, images_made
from bench.networks.trained import open_networks
from bench.published import zeroq
from bench.published.baselines import BASELINES, PRUNING, by_distilling
from bench.rows import add_missing, finished, rows_on_file
from bench.tables.accuracy import top1_of
from bench.tables.paper_pages import page
from bench.tables.paper_parts import PARTS, Point, points
from datafree import Recipe, compress
from datafree.execution.atomic import atomic_write
from datafree.execution.mac_counter import count_macs
from datafree.graph import layer_macs
from datafree.graph.capture import trace
from datafree.recipe import MatchedImages
from datafree.run.evaluate import evaluate_models
from datafree.student.distill_images import DistillError

LONG = ("DI, 500", "DI, 2000", "AKD, 200 + 500", "AKD, 50 + 500", "DI, kl", "DI, mse", "AKD, mse")
Key = tuple[str, str, str, str, int, str]


@dataclass(frozen=True)
class Row:
    """One student. Accuracies percent, `lost` points, cost in forward passes of one image and in multiply-adds.

    note: what training of the whole student did; "rejected: ..." where there is no student, and all figures are 0.
    data: the images, where they are not the network's own; such rows are in no table. Without labels there is only
        agreement, and the other accuracies are None.
    """

    part: str
    network: str
    method: str
    preset: str
    seed: int
    num_images: int
    float_top1: float | None = 0.0
    top1: float | None = 0.0
    lost: float | None = 0.0
    lost_error: float | None = 0.0
    agreement: float = 0.0
    forward_passes: float = 0.0
    macs: int = 0
    seconds: float = 0.0
    note: str = ""
    images_commit: str = ""  # that made them
    data: str = ""
    commit: str = ""

    @property
    def key(self) -> Key:
        return (self.part, self.network, self.method, self.preset, self.seed, self.data)

    @property
    def rejected(self) -> bool:
        return self.note.startswith("rejected")

    def __str__(self) -> str:
        cost = f"{self.forward_passes:,.0f} forward passes, {self.seconds:.0f} s"
        what = f"{self.part} {self.network} {self.preset} {self.method}"
        if self.lost is None:
            told = f"agreement {self.agreement:.1f} % on {self.num_images} {self.data}"
            return f"{what}: {told}; {cost}; no labels, so top-1 is not known; {self.note}"
        images = f"{self.num_images} images" + (f" of {self.data}" if self.data else "")
        return (
            f"{what}: top-1 {self.top1:.1f} of {self.float_top1:.1f} % ± {self.lost_error:.1f}, {images}; {cost}; "
            f"{self.note}"
        )


@dataclass
class Bench:
    """One network under measurement; images of each kind are made once and kept in `cache`."""

    name: str
    model: nn.Module
    example: Tensor
    data: list[tuple[Tensor, Tensor]]
    seed: int
    cache: Path
    measured_on: str = ""
    has_labels: bool = True
    float_macs: int = field(init=False)

    def __post_init__(self) -> None:
        self.float_macs = sum(layer_macs(trace(self.model, self.example)).values())

    @property
    def num_images(self) -> int:
        return sum(len(y) for _, y in self.data)

    def run(self, point: Point) -> Row:
        """Make one student and evaluate it; images made before are charged in full."""
        made = self._images(point)
        key = (point.part, self.name, point.method, point.preset, self.seed, self.num_images)
        start = time.perf_counter()
        try:
            with count_macs() as spent:
                student, note = self._student(point, made)
        except DistillError as error:
            seconds = round(time.perf_counter() - start, 1)
            return Row(*key, seconds=seconds, note=f"rejected: {error}", data=self.measured_on)
        seconds = time.perf_counter() - start + sum(m.seconds for m in made.values())
        macs = spent.macs + sum(m.macs for m in made.values())
        found = evaluate_models(student, self.model, self.data, layers=False)
        return Row(
            *key, *top1_of(found, self.has_labels), found.agreement, macs / self.float_macs, macs, round(seconds, 1),
            note, ", ".join(sorted({m.commit for m in made.values()})), self.measured_on,
        )  # fmt: skip

    def _student(self, point: Point, made: dict[str, Images]) -> tuple[nn.Module, str]:
        """The student, and what its training says."""
        if point.baseline:
            images = {"images": made["ZeroQ"].images[0]} if point.baseline == "ZeroQ" else {}
            method = {**BASELINES, **PRUNING}[point.baseline]
            return method(self.model, self.example, seed=self.seed, **point.given, **images), ""
        own = made.get(_signal(point.start))
        start_images = own.images if own else None
        if point.images is None:
            run = compress(self.model, point.start, self.example, seed=self.seed, images=start_images)
            return run.student, ""
        seen = made.get(_signal(point.training))
        return by_distilling(
            self.model, self.example, start=point.start, training=point.training, seed=self.seed,
            start_images=start_images, images=seen.images if seen else (),
        )  # fmt: skip

    def _images(self, point: Point) -> dict[str, Images]:
        """Images made ahead that a point needs, by their signal; a generator makes its own on the way."""
        if point.baseline:
            return {"ZeroQ": self._zeroq()} if point.baseline == "ZeroQ" else {}
        recipes = [point.start, *([point.training] if point.images is not None else [])]
        ahead = [r for r in recipes if isinstance(r.signal, MatchedImages)]
        return {
            _signal(r): images_made(
                self.name, self.model, r, self.example, seed=self.seed, cache=self.cache, on_step=_say
            )
            for r in ahead
        }

    def _zeroq(self) -> Images:
        path = self.cache / f"{self.name}-{self.seed}-zeroq.pt"
        if not path.exists():
            start = time.perf_counter()
            with count_macs() as spent:
                images = zeroq.distill_images(self.model, self.example, seed=self.seed)
            with atomic_write(path) as place:
                torch.save({"images": (images,), "macs": spent.macs, "seconds": time.perf_counter() - start}, place)
        return Images(**torch.load(path))


def _signal(recipe: Recipe) -> str:
    return recipe.signal.model_dump_json()


def _say(what: str, done: int, total: int) -> None:
    if done % 100 == 0:
        print(f"  {what}: {done} of {total}", flush=True)


def main() -> None:
    options = _parser().parse_args()
    zoo = open_networks(options)
    for name in options.networks:
        x, y = zoo.images(name, zoo.num_images(name, options.images))
        data = list(zip(x.split(100), y.split(100), strict=True))
        also = (zoo.measured_on(name), zoo.has_labels(name))
        bench = Bench(name, zoo.load(name), x[:1], data, options.seed, options.cache, *also)
        measure(bench, chosen(points(name, options.parts), options), options.out / "paper.jsonl")
    (options.out / "paper.md").write_text(page(written(options.out / "paper.jsonl"), options.out))


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser(__doc__)
    parser.set_defaults(networks=["efficientnet_lite0", "resnet_digits", "mobilenet_digits"])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--presets", nargs="+", default=[], help="only these rows of the tables")
    parser.add_argument("--methods", nargs="+", default=[], help="only methods that begin like this")
    parser.add_argument("--quick", action="store_true", help=f"without methods that begin with {', '.join(LONG)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=1000, help="evaluate on so many at most")
    parser.add_argument("--cache", type=Path, default=CACHE)
    return parser


def chosen(all_of: Iterable[Point], options: argparse.Namespace) -> list[Point]:
    """The points asked for."""
    return [
        point
        for point in all_of
        if (not options.presets or point.preset in options.presets)
        and (not options.methods or point.method.startswith(tuple(options.methods)))
        and not (options.quick and point.method.startswith(LONG))
    ]


def measure(bench: Bench, asked: Iterable[Point], path: Path) -> None:
    """Every point, but those on file that current code made on as many images."""
    also = (bench.seed, bench.measured_on)
    keyed = (((p.part, bench.name, p.method, p.preset, *also), partial(bench.run, p)) for p in asked)
    add_missing(path, keyed, finished(written(path, bench.measured_on), bench.num_images))


def written(path: Path, data: str = "") -> list[Row]:
    """All rows on file, the last of each kind; those on these images, "" = the networks' own."""
    return [row for row in rows_on_file([path], Row, lambda row: row.key) if row.data == data]


if __name__ == "__main__":
    main()
