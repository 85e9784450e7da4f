"""Predicted against true agreement: damaged and compressed students of every network of the zoo.

    python -m bench.tables.estimate --networks resnet20_cifar10

Students: the teacher with graded noise, rounding and masks, and presets on propagated probes. Images are seen only to
measure the true agreement. Prints Spearman's correlation, the mean absolute error in points, the share of students
inside of the stated 90 % interval, and the seconds that W8A8 and an estimate of it take; writes JSON lines.

Compressed students and true agreements are kept under `--cache`, for they take nearly all of the time. They are not
made anew when compression changes: give another folder then.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from bench import arguments
from bench.networks.made_images import CACHE
from bench.networks.trained import open_networks
from bench.rows import append_row
from datafree import Recipe, Run, compress
from datafree import graph as g
from datafree.execution.atomic import atomic_write
from datafree.quantization.affine import choose_qparams, fake_quantize
from datafree.run.estimate import EFFORTS, calibrate, predict

NOISES = (0.01, 0.03, 0.05, 0.09, 0.15, 0.25)
BITS = (8, 7, 6, 5, 4)
MASKS = (0.05, 0.15, 0.25, 0.35, 0.45)
PRESETS = ("w8a8", "w8a8-tensor", "w6a6", "w5a5", "w4a8", "w4a8-tensor", "w4a4", "w3a8", "w3a3")
METHODS = ("nearest", "gptq")


def main() -> None:
    options = _options()
    zoo = open_networks(options)
    for network in options.networks:
        count, data = zoo.num_images(network, options.images), zoo.measured_on(network)
        x, _ = zoo.images(network, count)
        kept = Kept(options.cache / "estimate" / network / data, zoo.load(network), x)
        rows = list(_measure(kept, options))
        for row in rows:
            append_row(options.out / "estimate.jsonl", {"network": network, "images": count, "data": data, **row})
        told = f"{count} images" + (f" of {data}" if data else "")
        print(f"{network}, {len(rows)} students, {told}: {_summary(rows)}", flush=True)


@dataclass(frozen=True)
class Kept:
    """A folder with compressed students of one network, and how often students truly agree on its images."""

    folder: Path
    model: nn.Module
    images: Tensor

    def compressed(self, preset: str, method: str) -> fx.GraphModule:
        path = self.folder / f"{preset}-{method}"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            settings = ["signal.kind=propagated", "solve.sequential=false", f"solve.method={method}"]
            compress(self.model, Recipe.preset(preset).updated(settings), self.images[:1]).save(path)
        return Run.load(path).student

    def agreement(self, name: str, student: fx.GraphModule) -> float:
        """Percent of the images on which it gives the float network's class."""
        path = self.folder / f"true-{len(self.images)}.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        if name not in known:
            same = _answers(student, self.images) == _answers(self.model, self.images)
            known[name] = 100 * float(same.double().mean())
            with atomic_write(path) as place:
                place.write_text(json.dumps(known))
        return known[name]


def _measure(kept: Kept, options: argparse.Namespace):
    first = compress(kept.model, Recipe.preset("w8a8"), kept.images[:1])
    start = time.perf_counter()
    yardstick = calibrate(first, EFFORTS[options.effort])
    found, seconds = predict(first.student, yardstick), time.perf_counter() - start
    print(f"w8a8 {first.summary.seconds:.1f} s, its estimate {seconds:.1f} s: {found}", flush=True)
    for name, student in _students(kept, first.teacher, options):
        true, found = kept.agreement(name, student), predict(student, yardstick)
        said = {"predicted": found.agreement, "low": found.low, "high": found.high}
        yield {"student": name, "true": true, **said}


def _students(kept: Kept, teacher: fx.GraphModule, options: argparse.Namespace) -> Iterator[tuple[str, fx.GraphModule]]:
    yield from _damaged(teacher)
    for preset in options.presets:
        for method in options.methods:
            yield f"{preset}, {method}", kept.compressed(preset, method)


def _damaged(teacher: fx.GraphModule) -> Iterator[tuple[str, fx.GraphModule]]:
    layers = g.layers(teacher)
    weights = {n: g.weight(teacher, layer) for n, layer in layers.items()}
    generator = torch.Generator().manual_seed(1)
    for noise in NOISES:
        draw = {n: noise * w.flatten(1).std(1) for n, w in weights.items()}
        yield (
            f"noise {noise}",
            g.with_weights(
                teacher,
                {
                    n: w + draw[n].view(-1, *[1] * (w.dim() - 1)) * torch.randn(w.shape, generator=generator)
                    for n, w in weights.items()
                },
            ),
        )
    for bits in BITS:
        rounded = {}
        for n, w in weights.items():
            rows = w.flatten(1)
            rounded[n] = fake_quantize(
                rows, choose_qparams(rows.amin(1), rows.amax(1), bits=bits, symmetric=False)
            ).view_as(w)
        yield f"rounded to {bits} bits", g.with_weights(teacher, rounded)
    for share in MASKS:
        least = {n: w.abs().flatten().kthvalue(max(1, int(share * w.numel()))).values for n, w in weights.items()}
        yield (
            f"masked {share}",
            g.with_weights(teacher, {n: torch.where(w.abs() > least[n], w, 0.0) for n, w in weights.items()}),
        )


def _answers(net, x):
    with torch.no_grad():
        return torch.cat([net(part).argmax(1) for part in x.split(100)])


def _summary(rows) -> str:
    true, predicted = (torch.tensor([r[k] for r in rows]) for k in ("true", "predicted"))
    ranks = torch.stack([v.argsort().argsort().float() for v in (true, predicted)])
    inside = sum(r["low"] <= r["true"] <= r["high"] for r in rows) / len(rows)
    return (
        f"Spearman {float(torch.corrcoef(ranks)[0, 1]):.3f}, mean absolute error "
        f"{float((true - predicted).abs().mean()):.1f} points, {100 * inside:.0f} % inside of the 90 % interval"
    )


def _options() -> argparse.Namespace:
    parser = arguments.parser(__doc__)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--effort", default="full", choices=list(EFFORTS))
    parser.add_argument("--presets", nargs="*", default=PRESETS)
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder that keeps students and true agreements")
    return parser.parse_args()


if __name__ == "__main__":
    main()
