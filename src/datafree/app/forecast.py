"""Which layers will probably lose channels, said before anything is solved (ours)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor, fx

from datafree import graph as g
from datafree.recipe import Nearest, Propagated, Recipe
from datafree.records import InputRange, LayerResult, Stats
from datafree.signals import Signal, propagated, signal_job, walk_teacher
from datafree.solve import (
    Grids,
    LayerJob,
    Plan,
    Problem,
    Solution,
    coarse_inputs,
    compress_layer,
    floor_db,
    layer_jobs,
    plan_layers,
)

LEAST, MOST, NUMBERS = 8, 64, 3 * 2**19  # images, and numbers in them
LOOKED_AT = 1024  # output positions of a layer
THERE = 1e-6  # of the largest; what is less is nothing


@dataclass(frozen=True)
class Forecast:
    """A layer that is expected to keep too little of its output channels.

    what: "weights" or "input", whichever is rounded too coarsely.
    channel_db: what is left of each channel, on average.
    output_db: what is left of the network's output; not known of weights, which are solved otherwise.
    """

    name: str
    what: str
    bits: int
    channel_db: float
    reason: str
    output_db: float = math.inf


def forecast(teacher: fx.GraphModule, stats: Stats, recipe: Recipe, known: InputRange | None) -> tuple[Forecast, ...]:
    """Round every layer to nearest on a few procedural images, and look at what is left of its channels.

    Args:
        teacher: equalized; nothing is changed.
        stats: of its tensors.
        known: mean and std of the network's input.
    """
    plan = _without_pruning(plan_layers(teacher, recipe))
    signal = propagated(signal_job(teacher, stats, Propagated(images=_num_images(teacher)), 0, known))
    grids: Grids = {}
    found: list[Forecast] = []
    results: dict[str, LayerResult] = {}
    for job in layer_jobs(Problem(teacher, plan, signal, Nearest()), grids):
        result = results[job.name] = rounded(job)
        if result.remedy:
            found.append(Forecast(job.name, "weights", job.spec.bits or 32, result.as_asked_db, _weights_reason(job)))
    coarse = coarse_inputs(Solution(teacher, plan, results, grids), signal)
    reasons = _input_reasons(teacher, plan, signal, {c.name for c in coarse}) if coarse else {}
    return (*found, *(Forecast(c.name, "input", c.bits, c.input_db, reasons[c.name], c.output_db) for c in coarse))


def rounded(job: LayerJob) -> LayerResult:
    """Rounded to nearest; ranges are searched where those from the least to the largest value lose too much.

    A search lowers the error of every row that has a scale of its own: what holds without it holds with it.
    """
    if job.spec.per_channel:
        plain = compress_layer(replace(job, method=Nearest(clip=False, mend=False)))
        if plain.channel_db > floor_db(job.spec.bits):
            return plain
    return compress_layer(job)


def _num_images(teacher: fx.GraphModule) -> int:
    """More where they are small: narrow tensors at the end of a network have few positions."""
    size = max(math.prod(g.shape(node)[1:]) for node in g.placeholders(teacher))
    return min(MOST, max(LEAST, NUMBERS // size))


def _without_pruning(plan: Plan) -> Plan:
    """Zeros are chosen later, and take nothing from the range."""
    layers = {n: replace(i, weights=i.weights and replace(i.weights, prune=None)) for n, i in plan.layers.items()}
    return replace(plan, layers=layers)


def _weights_reason(job: LayerJob) -> str:
    """One scale for rows that differ, or for weights of one row that differ; the typical is the median."""
    weight = job.weight.abs().flatten(0, 1)
    if not job.spec.per_channel:
        return f"rows of 1 : {_spread(weight.amax(1)):.0f} under one scale"
    typical = weight.median(1).values.clamp(min=1e-30)
    return f"one weight is {float((weight.amax(1) / typical).max()):.0f} times those around it"


def _input_reasons(teacher: fx.GraphModule, plan: Plan, signal: Signal, names: set[str]) -> dict[str, str]:
    """How much the inputs of these layers differ in their standard deviations."""
    layers = [plan.layers[name].layer for name in names]
    reasons = {}
    for node, x in walk_teacher(teacher, signal):
        for layer in (a for a in layers if g.operand(g.node_of(teacher, a.node)) is node):
            taps = g.unfold(x, layer, g.positions(x.shape, layer, LOOKED_AT, signal.seed)).std(0).flatten()
            reasons[layer.name] = f"input channels of 1 : {_spread(taps):.0f} under one scale"
    return reasons


def _spread(values: Float[Tensor, " n"]) -> float:
    """The largest, in units of the smallest that is there."""
    there = values[values > THERE * values.max()]
    return float(there.max() / there.min()) if len(there) else 1.0
