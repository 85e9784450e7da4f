"""Bits and zeros of every layer for a budget: least error at the network's output, chosen by an integer program."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from torch import fx

from datafree import graph as g
from datafree.allocation.channels import sizes_of
from datafree.allocation.input_bits import input_options
from datafree.allocation.weight_bits import Option, layers_with_rules, may_thin, weight_options
from datafree.execution import silent
from datafree.extras import install
from datafree.recipe import LayerRule, Prune, Recipe
from datafree.solve import LayerError, Plan, Problem

FLOAT = 32  # bits
CURVE = 12  # budgets for which the best error is told, between the smallest and the largest
SECONDS = 20  # for one integer program; what was found by then is used


class BudgetError(ValueError):
    """A budget that cannot be met."""


Pareto = tuple[tuple[float, float], ...]
"""(budget, predicted error of the network's output) from the smallest budget to the largest."""


def apply_budget(problem: Problem, recipe: Recipe, pool: Callable) -> tuple[Recipe, Pareto]:
    """Turn the recipe's budget into bits and sparsity of every layer (ours).

    Each layer is rounded at every width, and pruned further and further where the recipe prunes; a few of the results
    are put into the network to see what an error of this layer does to its output. Inputs of layers are rounded there
    at every width. Errors add up nearly, so the best choice is an integer program: one option a layer, least summed
    error, what the options take within the budget.

    Returns:
        The recipe with a rule for each layer instead of a budget, and the errors of other budgets.

    Raises:
        BudgetError: nothing is so small; says the smallest there is. What is pruned contradicts it. No scipy.
    """
    budget, prune = recipe.budget, recipe.prune
    if budget is None:
        return recipe, ()
    if budget.sparsity is not None:
        if prune is not None and prune.cell:
            raise BudgetError(f"budget.sparsity: prune.pattern {prune.pattern!r} says how sparse; leave one out")
        fields = prune.model_dump(exclude_unset=True) if prune else {}
        return _with(recipe, prune=Prune(**{**fields, "sparsity": budget.sparsity, "scope": "global"})), ()
    if budget.macs is not None:
        if prune is not None and prune.pattern != "channels":
            raise BudgetError(f"budget.macs removes channels, prune.pattern is {prune.pattern!r}; leave prune out")
        return _with(recipe, prune=_channels_for(problem.teacher, budget.macs)), ()
    return _bits_and_zeros(problem, recipe, pool)


@dataclass(frozen=True)
class _Measure:
    """What a budget counts in: its value for options of a summed size is (size + fixed) / per."""

    name: str
    fixed: int = 0
    per: int = 1

    def size(self, value: float) -> float:
        return value * self.per - self.fixed

    def value(self, size: float) -> float:
        return (size + self.fixed) / self.per

    def least(self, size: float) -> str:
        """The least budget there is, rounded up to what can be asked for."""
        value = self.value(size)
        return f"{self.name} {math.ceil(value)}" if self.per == 1 else f"{self.name} {math.ceil(1e4 * value) / 1e4:g}"


def _bits_and_zeros(problem: Problem, recipe: Recipe, pool: Callable) -> tuple[Recipe, Pareto]:
    """Solve a budget whose options are bits of weights, with zeros, or of layers' inputs, or both."""
    if find_spec("scipy") is None:
        raise BudgetError(f"a budget of bytes, bits or bit operations needs scipy; {install('budget')}")
    budget, ruled = recipe.budget, layers_with_rules(recipe, problem.plan)
    assert budget is not None, "there is one to solve"
    if budget.mean_activation_bits is not None:
        options, measure = _of_inputs(problem, recipe, ruled)
    elif budget.bit_operations is not None:
        options, measure = _of_both(problem, recipe, ruled, pool)
    else:
        options, measure = _of_weights(problem, recipe, pool)
    [asked] = budget.model_dump(exclude_none=True).values()
    limit = measure.size(float(asked))
    least, most = (sum(pick(o.size for o in row) for row in options.values()) for pick in (min, max))
    if least > limit:
        raise BudgetError(f"budget: {budget} cannot be met; the least is {measure.least(float(least))}")
    chosen = choose(options, limit)
    limits = [float(least) + (most - least) * i / (CURVE - 1) for i in range(CURVE)]
    pareto = tuple((measure.value(limit), sum(o.error for o in choose(options, limit).values())) for limit in limits)
    rules = {name: _rule(option, may_thin(recipe)) for name, option in chosen.items() if name not in ruled}
    return _with(recipe, layers={**rules, **recipe.layers}), pareto  # rules that were there keep their order


def _of_weights(problem: Problem, recipe: Recipe, pool: Callable) -> tuple[dict[str, list[Option]], _Measure]:
    options, teacher = weight_options(problem, recipe, pool), problem.teacher
    if not options:
        raise BudgetError("budget: no layer's weights are quantized, so there is nothing to choose; set weights.bits")
    if recipe.budget and recipe.budget.bytes is not None:
        return options, _Measure("bytes", fixed=_fixed_bytes(teacher, problem.plan, set(options)))
    weights = sum(g.weight(teacher, problem.plan.layers[name].layer).numel() for name in options)
    return options, _Measure("mean_bits", per=weights)


def _of_inputs(problem: Problem, recipe: Recipe, ruled: set[str]) -> tuple[dict[str, list[Option]], _Measure]:
    """Bits of layers' inputs, each as often as it is multiplied; where the ends keep 8 bits they do not count."""
    macs, found = g.layer_macs(problem.teacher), input_options(problem, recipe, ruled)
    counted = {name: row for name, row in found.items() if len(row) > 1 or name in ruled}
    if not any(len(row) > 1 for row in counted.values()):
        raise BudgetError("budget: no layer's input has bits to choose; set activations.bits")
    options = {
        name: [Option(None, 0.0, macs[name] * o.bits, o.error, o.bits) for o in row] for name, row in counted.items()
    }
    return options, _Measure("mean_activation_bits", per=sum(macs[name] for name in counted))


def _of_both(
    problem: Problem, recipe: Recipe, ruled: set[str], pool: Callable
) -> tuple[dict[str, list[Option]], _Measure]:
    """Bits of weights and inputs: errors add up, bit operations are multiply-adds times both."""
    if recipe.prune is not None:
        raise BudgetError("budget.bit_operations chooses bits, and zeros save none of these; leave prune out")
    macs, weights, inputs = (
        g.layer_macs(problem.teacher),
        weight_options(problem, recipe, pool),
        input_options(problem, recipe, ruled),
    )
    options = {
        name: [
            Option(w.bits, 0.0, macs[name] * (w.bits or FLOAT) * i.bits, w.error + i.error, i.bits)
            for w in weights[name]
            for i in inputs[name]
        ]
        for name in weights
        if name in inputs
    }
    if not options:
        raise BudgetError("budget: no layer has both weights and input to choose bits of; set weights and activations")
    others = (
        macs[name] * ((item.weights and item.weights.bits) or FLOAT) * (item.input_bits or FLOAT)
        for name, item in problem.plan.layers.items()
        if name not in options
    )
    return options, _Measure("bit_operations", fixed=sum(others))


def _with(recipe: Recipe, **fields: object) -> Recipe:
    return recipe.model_copy(update={"budget": None, **fields})


def _rule(option: Option, prunes: bool) -> LayerRule:
    pruned = {"prune": {"sparsity": option.sparsity}} if prunes else {}
    chosen = {"weights": option.bits, "activations": option.input_bits}
    return LayerRule.model_validate({part: {"bits": bits} for part, bits in chosen.items() if bits} | pruned)


def _channels_for(teacher: fx.GraphModule, macs: int) -> Prune:
    total = sum(size.macs for size in sizes_of(teacher).values())
    return Prune(pattern="channels", sparsity=max(0.0, 1 - macs / total))


def _fixed_bytes(teacher: fx.GraphModule, plan: Plan, chosen: set[str]) -> int:
    """Bytes that no choice changes: biases, scales and multipliers; weights of the layers not chosen for."""
    wide = g.layers_with_v_o(teacher)
    total = 0
    for name, item in plan.layers.items():
        channels = len(g.bias(teacher, item.layer))
        total += 4 * channels
        if name not in chosen:
            total += 4 * g.weight(teacher, item.layer).numel()
        elif item.weights is not None:
            total += 4 * (channels if item.weights.per_channel or name in wide else 1)
    return total


def choose(options: dict[str, list[Option]], limit: float) -> dict[str, Option]:
    """One option a layer, least summed error, sizes within the limit: an integer program, by scipy's HiGHS.

    Raises:
        LayerError: an error is not finite.
    """
    from scipy import optimize, sparse

    for name, row in options.items():
        if not all(math.isfinite(option.error) for option in row):
            raise LayerError(f"{name}: its error at some bits is not finite, so none can be chosen; leave budget out")
    flat = [(n, option) for n, row in options.items() for option in row]
    index = {name: i for i, name in enumerate(options)}
    one = sparse.coo_array((np.ones(len(flat)), ([index[n] for n, _ in flat], range(len(flat)))))
    sizes = np.array([[option.size for _, option in flat]], dtype=float)
    errors = np.array([option.error for _, option in flat])
    with silent():  # HiGHS writes lines of its own
        solved = optimize.milp(
            errors / max(errors.max(), 1e-30),
            integrality=np.ones(len(flat)),
            bounds=optimize.Bounds(0, 1),
            constraints=[
                optimize.LinearConstraint(one, 1, 1),
                optimize.LinearConstraint(sizes, -np.inf, math.floor(limit) + 0.5),
            ],
            options={"time_limit": SECONDS, "mip_rel_gap": 1e-3, "presolve": False},
        )
    assert solved.x is not None, f"the smallest options fit, so there is a choice: {solved.message}"
    return {flat[i][0]: flat[i][1] for i in np.flatnonzero(solved.x > 0.5)}
