"""Multiply-adds that a compression will spend, counted from its plan before it begins: for progress and time (ours)."""

from __future__ import annotations

import math

from torch import fx

from datafree import graph as g
from datafree.execution import CHOOSING, DISTILLING, MAKING_IMAGES, SOLVING, ExpectedWork
from datafree.recipe import Recipe, RoundingRecipe
from datafree.run.cost import layer_macs
from datafree.signals import images_asked, signal_kind
from datafree.solve import MAX_TAPS, NUM_ROWS, LayerPlan, Plan, rounding_method

SOLVES = 6  # solutions of a layer with H, in products of its weights with H: the grids tried, and polishing


def expected_work(teacher: fx.GraphModule, plan: Plan, recipe: Recipe, *, remembers: bool) -> ExpectedWork:
    """Multiply-adds of every phase that comes, from what the recipe asks for.

    Right within a factor of two on the networks it was tried on, which is enough for a bar.

    Args:
        remembers: whether BatchNorm tells what images have to be like.
    """
    forward = sum(layer_macs(teacher).values())
    count = images_asked(teacher, recipe.signal)
    layers = sum(_solving(teacher, item, recipe.solve, count) for item in plan.layers.values())
    walks = 2 if recipe.solve.sequential else 1
    layers *= 3 if recipe.prune else 1  # zeros come in rounds
    chooses = recipe.budget is not None or recipe.prune is not None
    found = {
        MAKING_IMAGES: signal_kind(recipe.signal).passes(recipe.signal, count, remembers) * forward,
        CHOOSING: 2 * (count * forward + layers) if chooses else 0,
        SOLVING: walks * count * forward + layers,
        DISTILLING: 4 * recipe.distill.steps * recipe.distill.batch * forward if recipe.distill else 0,
    }
    num_layers = sum(item.weights is not None for item in plan.layers.values())
    return ExpectedWork(forward, num_layers, {phase: macs for phase, macs in found.items() if macs})


def _solving(teacher: fx.GraphModule, item: LayerPlan, method: RoundingRecipe, count: int) -> int:
    """One layer: the moments of its inputs, and the solutions."""
    if item.weights is None:
        return 0
    layer, row = item.layer, rounding_method(method)
    weight = g.grouped(g.weight(teacher, layer), layer.groups)
    trained = 3 * row.num_rows(method) * weight.numel() if row.num_rows else 0
    if row.moments == "diagonal":
        return trained
    positions = math.prod(g.shape(g.node_of(teacher, layer.node))[2:])
    taps = weight.shape[2]
    moments = min(NUM_ROWS["covariance"], count * positions) * layer.groups * taps * min(taps, MAX_TAPS)
    return trained + moments + SOLVES * weight.numel() * min(taps, MAX_TAPS)
