"""Predicted against true agreement: damaged and compressed students of every network of the zoo.

    python -m bench.tables.estimate --networks resnet20_cifar10

Students: the teacher with graded noise, rounding and masks (drawn apart from those the prediction is calibrated on),
and presets on propagated probes. Images are seen only to measure the true agreement. Prints Spearman's correlation,
the mean absolute error in points and the share of students inside of the stated 90 % interval; writes JSON lines.
"""

from __future__ import annotations

import argparse

import torch

from bench import arguments
from bench.networks.trained import open_networks
from bench.rows import append_row
from datafree import Recipe, compress
from datafree import graph as g
from datafree.quantization.affine import choose_qparams, fake_quantize
from datafree.run.estimate import calibrate, predict

NOISES = (0.01, 0.03, 0.05, 0.09, 0.15, 0.25)
BITS = (8, 7, 6, 5, 4)
MASKS = (0.05, 0.15, 0.25, 0.35, 0.45)
PRESETS = ("w8a8", "w8a8-tensor", "w6a6", "w5a5", "w4a8", "w4a8-tensor", "w4a4", "w3a8", "w3a3")
SOLVERS = ("nearest", "gptq")


def main() -> None:
    options = _options()
    zoo = open_networks(options)
    for network in options.networks:
        count, data = zoo.num_images(network, options.images), zoo.measured_on(network)
        x, _ = zoo.images(network, count)
        rows = list(_measure(zoo.load(network), x))
        for row in rows:
            append_row(options.out / "estimate.jsonl", {"network": network, "images": count, "data": data, **row})
        told = f"{count} images" + (f" of {data}" if data else "")
        print(f"{network}, {len(rows)} students, {told}: {_summary(rows)}", flush=True)


def _measure(model, x):
    example = x[:1]
    first = compress(model, Recipe.preset("w8a8"), example)
    curve, answers = calibrate(first), _answers(first.teacher, x)
    for name, student in _students(model, first.teacher, example):
        found = predict(student, curve)
        true = 100 * float((_answers(student, x) == answers).double().mean())
        yield {"student": name, "true": true, "predicted": found.agreement, "low": found.low, "high": found.high}


def _students(model, teacher, example):
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
    for preset in PRESETS:
        for method in SOLVERS:
            settings = ["signal.kind=propagated", "solve.sequential=false", f"solve.method={method}"]
            yield f"{preset}, {method}", compress(model, Recipe.preset(preset).updated(settings), example).student


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
    return parser.parse_args()


if __name__ == "__main__":
    main()
