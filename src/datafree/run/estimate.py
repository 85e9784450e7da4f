"""What was lost, predicted without data: how far the student moves the logits, and how often that turns an answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from datafree import graph as g
from datafree.quantization import rounded_rows
from datafree.recipe import Matched
from datafree.records import Estimate
from datafree.run.record import Run
from datafree.signals import make_signal

HELD_OUT = 2**20  # added to the run's seed: other images than those the student was solved on
NUM_IMAGES = 64
NOISES = (0.005, 0.01, 0.02, 0.04, 0.07, 0.12, 0.2, 0.3)  # of a channel's weights, as a share of their deviation
BITS = (8, 6, 5, 4, 3)
MASKS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4)
POWERS = (0.8, 1.0, 1.25, 1.5, 1.8)  # of the curve, to choose from
EASIER = 1.5  # a move turns matched images' answers like one larger by this turns real ones'; over networks (ours)
SPREAD = 2.3  # nine in ten students lie between this times larger and smaller moves; over networks (ours)
LEAST = 0.5  # half of the interval at least, points


class EstimateError(ValueError):
    """A network whose answers cannot be compared."""


def estimate(run: Run) -> Estimate:
    """Predict on how many images the student agrees with the float network; no data is read.

    On images matched to BatchNorm's statistics, others than those the layers were solved on, the student moves the
    logits about as far as on real ones: z = |student - teacher| / |teacher|. How often a move of that size turns the
    answer is learned on the same network, damaged on purpose (noise, rounding, masks, graded), as s and p of

        1 - agreement = (1 - 1/C) (1 - exp(-(s z)^p)),   C classes                                         (ours)

    Matched images lie nearer to the boundaries between classes than real ones, so s is divided by a constant, which
    was chosen over several networks, as was the width of the interval (bench/tables/estimate.py).

    Raises:
        EstimateError: the network does not return one tensor of logits (N, classes).
    """
    return predict(run.student, calibrate(run))


@dataclass(frozen=True)
class FlipCurve:
    """What is learned of one network before any student is looked at: images, its answers, how easily they turn."""

    images: tuple[Tensor, ...]
    logits: Float[Tensor, "n c"]
    steepness: float  # s, for real images
    power: float  # p


def calibrate(run: Run) -> FlipCurve:
    """Make matched images and damage the teacher on purpose.

    Raises:
        EstimateError: the network does not return one tensor of logits (N, classes).
    """
    shapes = [g.shape(node) for node in g.outputs(run.teacher)]
    if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][1] < 2:
        raise EstimateError(f"an estimate needs logits (N, classes); this network returns {shapes}; nothing to compare")
    signal = Matched(images=NUM_IMAGES)
    seed = run.summary.seed + HELD_OUT
    source = make_signal(run.teacher, run.stats, signal, seed=seed, input_range=run.input_range)
    with torch.no_grad():
        logits = run.teacher(*source.inputs)
        moves, turned = zip(*(_damage(logits, net(*source.inputs)) for net in damaged(run.teacher)), strict=True)
    steepness, power = fit(torch.tensor(moves), torch.tensor(turned), logits.shape[1])
    return FlipCurve(source.inputs, logits, steepness / EASIER, power)


def predict(student: nn.Module, curve: FlipCurve) -> Estimate:
    """Read one student's agreement off the curve."""
    with torch.no_grad():
        move, _ = _damage(curve.logits, student(*curve.images))
    num_classes = curve.logits.shape[1]
    at = [curve.steepness * move * f for f in (SPREAD, 1.0, 1 / SPREAD)]
    low, middle, high = (100 - 100 * float(flip_rate(torch.tensor(v), curve.power, num_classes)) for v in at)
    return Estimate(middle, max(0.0, min(low, middle - LEAST)), min(100.0, max(high, middle + LEAST)))


def with_estimate(run: Run) -> Run:
    """The run with its estimate in the summary; or with the reason why there is none among the warnings."""
    try:
        return replace(run, summary=replace(run.summary, estimate=estimate(run)))
    except EstimateError as error:
        return replace(run, summary=replace(run.summary, warnings=(*run.summary.warnings, str(error))))


def damaged(teacher: fx.GraphModule) -> Iterator[fx.GraphModule]:
    """The teacher with noise on its weights, with rounded ones, with small ones set to zero; little to much."""
    layers = g.layers(teacher)
    weights = {name: g.weight(teacher, layer).flatten(1) for name, layer in layers.items()}
    sizes = torch.cat([w.abs().flatten() for w in weights.values()])
    generator = torch.Generator().manual_seed(0)
    for noise in NOISES:
        draw = {n: torch.randn(w.shape, generator=generator) for n, w in weights.items()}
        yield g.with_weights(
            teacher, {n: w + noise * w.std(1, keepdim=True, correction=0) * draw[n] for n, w in weights.items()}
        )
    for bits in BITS:
        yield g.with_weights(teacher, {n: rounded_rows(w, bits) for n, w in weights.items()})
    for share in MASKS:
        least = sizes.kthvalue(max(1, int(share * len(sizes)))).values
        yield g.with_weights(teacher, {n: torch.where(w.abs() > least, w, 0.0) for n, w in weights.items()})


def _damage(wanted: Float[Tensor, "n c"], found: Float[Tensor, "n c"]) -> tuple[float, float]:
    """How far the logits moved, as a share of their deviation; and the share of answers that turned."""
    move = (found - wanted).square().mean().sqrt() / wanted.std(correction=0).clamp(min=1e-12)
    return float(move), float((found.argmax(1) != wanted.argmax(1)).double().mean())


def fit(moves: Float[Tensor, " k"], turned: Float[Tensor, " k"], num_classes: int) -> tuple[float, float]:
    """The s and p whose curve is nearest to what was seen, by least squares over a fine grid."""
    found = []
    for power in POWERS:
        tried = torch.logspace(-2, 2, 2000)
        error = (flip_rate(tried[:, None] * moves, power, num_classes) - turned).square().sum(1)
        found.append((float(error.min()), float(tried[error.argmin()]), power))
    return min(found)[1:]


def flip_rate(change: Float[Tensor, ...], power: float, num_classes: int) -> Float[Tensor, ...]:
    """Share of answers that turn, of s z."""
    return (1 - 1 / num_classes) * -torch.expm1(-(change**power))
