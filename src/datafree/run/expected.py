"""What a compression will spend, counted from its plan before it begins: for progress, time and memory (ours)."""

from __future__ import annotations

import math

from torch import fx

from datafree import graph as g
from datafree.execution import CHOOSING, DISTILLING, MAKING_IMAGES, SOLVING, ExpectedWork
from datafree.recipe import Recipe, RoundingRecipe
from datafree.signals import images_asked, images_at_once, signal_kind
from datafree.solve import MAX_TAPS, NUM_ROWS, LayerPlan, Plan, rounding_method

WALK, BACKWARD = 2.2, 1.6  # copies of the tensors on the way, and of those that a backward pass reads
BATCH = 64  # images moved together
SOLVES, ZEROS = 6, 300  # products of a layer's weights with H: the grids tried and polishing; zeros chosen in rounds
PROBES = 2  # walks through the network for each layer whose errors are looked at there


def expected_work(teacher: fx.GraphModule, plan: Plan, recipe: Recipe, *, remembers: bool) -> ExpectedWork:
    """Multiply-adds of every phase that comes, and memory, from what the recipe asks for.

    Right within a factor of two, memory within a third, on the networks it was tried on.

    Args:
        remembers: whether BatchNorm tells what images have to be like.
    """
    forward, count = sum(g.layer_macs(teacher).values()), images_asked(teacher, recipe.signal)
    solved = [item for item in plan.layers.values() if item.weights is not None]
    walk = count * forward
    layers = sum(_solving(teacher, item, recipe.solve, count) for item in solved)
    zeros = ZEROS * sum(_product(teacher, item) for item in solved) if recipe.prune else 0
    chooses = recipe.budget is not None or recipe.prune is not None
    found = {
        MAKING_IMAGES: signal_kind(recipe.signal).passes(recipe.signal, count, remembers) * forward,
        CHOOSING: walk * (1 + PROBES * len(solved)) + layers + zeros if chooses else 0,
        SOLVING: walk * (2 if recipe.solve.sequential else 1) + layers + zeros,
        DISTILLING: 4 * recipe.distill.steps * recipe.distill.batch * forward if recipe.distill else 0,
    }
    phases = {phase: macs for phase, macs in found.items() if macs}
    return ExpectedWork(forward, len(solved), phases, _memory(teacher, plan, count, moves=MAKING_IMAGES in phases))


def _product(teacher: fx.GraphModule, item: LayerPlan) -> int:
    """One layer's weights times H."""
    weight = g.grouped(g.weight(teacher, item.layer), item.layer.groups)
    return weight.numel() * min(weight.shape[2], MAX_TAPS)


def _solving(teacher: fx.GraphModule, item: LayerPlan, method: RoundingRecipe, count: int) -> int:
    """One layer: the moments of its inputs, and the solutions."""
    row, weight = rounding_method(method), g.weight(teacher, item.layer)
    trained = 3 * row.num_rows(method) * weight.numel() if row.num_rows else 0
    if row.moments == "diagonal":
        return trained
    taps = g.grouped(weight, item.layer.groups).shape[2]
    rows = min(NUM_ROWS["covariance"], count * math.prod(g.shape(g.node_of(teacher, item.layer.node))[2:]))
    moments = rows * item.layer.groups * taps * min(taps, MAX_TAPS)
    return trained + moments + SOLVES * _product(teacher, item)


def _memory(teacher: fx.GraphModule, plan: Plan, count: int, *, moves: bool) -> int:
    """Bytes of weights, of the signal on its way or of a layer's H, or of what a backward pass remembers."""
    taps = max((g.weight(teacher, i.layer)[0].numel() for i in plan.layers.values()), default=0)
    widest, computed = g.numbers_held(teacher)
    walk, solving = WALK * 4 * count * widest, 3 * 8 * min(taps, MAX_TAPS) ** 2
    backward = BACKWARD * 4 * min(count, BATCH, images_at_once(teacher)) * computed if moves else 0
    return round(8 * g.num_parameters(teacher) + max(walk, solving, backward))
