"""What was lost, predicted without data: how far the student moves the logits, and how often that turns an answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, fx

from datafree import graph as g
from datafree.affine import fake_quantize, grid
from datafree.recipe import Matched
from datafree.records import Estimate
from datafree.run import Run
from datafree.signals import make_signal

HELD_OUT = 2**20  # added to the run's seed: other images than those the student was solved on
NUM_IMAGES = 64
NOISES = (0.02, 0.04, 0.07, 0.12, 0.2, 0.3)  # of a channel's weights, as a share of their deviation
BITS = (8, 6, 5, 4, 3)
MASKS = (0.1, 0.2, 0.3, 0.4, 0.5)
EASIER = (
    1.98  # matched images lie nearer to where answers turn than real ones, by this; over networks, bench/estimate.py
)
SPREAD = 1.6  # nine in ten networks and damages lie within this factor of the slope; over networks, bench/estimate.py
LEAST = 0.5  # half of the interval at least, points


class EstimateError(ValueError):
    """A network whose answers cannot be compared."""


def estimate(run: Run) -> Estimate:
    """Predict on how many images the student agrees with the float network; no data is read.

    On images matched to BatchNorm's statistics, others than those the layers were solved on, the student moves the
    logits about as far as on real ones: z = |student - teacher| / |teacher|. How often a move of that size turns the
    answer is learned on the same network, damaged on purpose (noise, rounding, masks, graded), with one slope s:

        1 - agreement = (1 - 1/C) (1 - exp(-s z)),   C classes                                             (ours)

    Matched images lie nearer to the boundaries between classes than real ones, so s is divided by a constant, which
    was chosen over several networks, as was the width of the interval.

    Raises:
        EstimateError: the network does not return one tensor of logits (N, classes).
    """
    shapes = [g.shape(node) for node in g.outputs(run.teacher)]
    if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][1] < 2:
        raise EstimateError(f"an estimate needs logits (N, classes); this network returns {shapes}; nothing to compare")
    signal = Matched(images=NUM_IMAGES)
    source, _ = make_signal(
        run.teacher, run.stats, signal, seed=run.summary.seed + HELD_OUT, input_range=run.input_range
    )
    with torch.no_grad():
        wanted = run.teacher(*source.inputs)
        moves, turned = zip(*(_damage(wanted, net(*source.inputs)) for net in damaged(run.teacher)), strict=True)
        move, _ = _damage(wanted, run.student(*source.inputs))
    steepness = slope(torch.tensor(moves), torch.tensor(turned), wanted.shape[1]) / EASIER
    middle, high, low = (agreement(move, steepness * f, wanted.shape[1]) for f in (1.0, 1 / SPREAD, SPREAD))
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
        yield _with(
            teacher, {n: w + noise * w.std(1, keepdim=True, correction=0) * draw[n] for n, w in weights.items()}
        )
    for bits in BITS:
        yield _with(
            teacher,
            {n: fake_quantize(w, grid(w.amin(1), w.amax(1), bits=bits, symmetric=False)) for n, w in weights.items()},
        )
    for share in MASKS:
        least = sizes.kthvalue(max(1, int(share * len(sizes)))).values
        yield _with(teacher, {n: torch.where(w.abs() > least, w, 0.0) for n, w in weights.items()})


def _with(teacher: fx.GraphModule, weights: dict[str, Tensor]) -> fx.GraphModule:
    net = g.duplicate(teacher)
    for name, layer in g.layers(teacher).items():
        g.set_tensor(net, f"{name}.weight", weights[name].view_as(g.weight(teacher, layer)))
    return net


def _damage(wanted: Float[Tensor, "n c"], found: Float[Tensor, "n c"]) -> tuple[float, float]:
    """How far the logits moved, as a share of their deviation; and the share of answers that turned."""
    move = (found - wanted).square().mean().sqrt() / wanted.std(correction=0).clamp(min=1e-12)
    return float(move), float((found.argmax(1) != wanted.argmax(1)).double().mean())


def slope(moves: Float[Tensor, " k"], turned: Float[Tensor, " k"], num_classes: int) -> float:
    """The s whose curve is nearest to what was seen, by least squares over a fine grid of slopes."""
    tried = torch.logspace(-2, 2, 2000)
    curve = (1 - 1 / num_classes) * (1 - torch.exp(-tried[:, None] * moves))
    return float(tried[(curve - turned).square().sum(1).argmin()])


def agreement(move: float, steepness: float, num_classes: int) -> float:
    """Percent of answers that stay."""
    turned = (1 - 1 / num_classes) * -torch.expm1(torch.tensor(-steepness * move, dtype=torch.float64))
    return float(100 * (1 - turned))
