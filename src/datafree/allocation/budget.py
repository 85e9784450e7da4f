"""Bits and zeros of every layer for a budget: least error at the network's output, chosen by an integer program."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from importlib.util import find_spec

import numpy as np
from torch import Tensor, fx

from datafree import graph as g
from datafree.allocation.channels import sizes_of
from datafree.allocation.sparsity import ErrorCurve, at_output, curve_of_zeros, measure_curve
from datafree.extras import install
from datafree.quantization import dequantize, stored_size
from datafree.recipe import LayerRule, Prune, Recipe
from datafree.records import WeightSpec
from datafree.solve import LayerJob, NetworkProbe, Plan, Problem, layer_jobs, solve_on_best_grid

WIDTHS = (2, 3, 4, 5, 6, 7, 8)
SPARSITIES = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # to choose from, where the recipe prunes
CURVE = 12  # budgets for which the best error is told, between the smallest and the largest
SECONDS = 20  # for one integer program; what was found by then is used


class BudgetError(ValueError):
    """A budget that cannot be met."""


@dataclass(frozen=True)
class Option:
    """One way to treat a layer: `error` is what it does to the network's output, as a share of its variance.

    `size` is what its weights take: bytes, or bits where the budget is of bits.
    """

    bits: int
    sparsity: float
    size: int
    error: float


Pareto = tuple[tuple[float, float], ...]
"""(budget, predicted error of the network's output) from the smallest budget to the largest."""


def apply_budget(problem: Problem, recipe: Recipe, pool: Callable) -> tuple[Recipe, Pareto]:
    """Turn the recipe's budget into bits and sparsity of every layer (ours).

    Each layer is rounded at every width, and pruned further and further where the recipe prunes; a few of the results
    are put into the network to see what an error of this layer does to its output. Errors add up nearly, so the best
    choice is an integer program: one option a layer, least summed error, bytes within the budget.

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


def _bits_and_zeros(problem: Problem, recipe: Recipe, pool: Callable) -> tuple[Recipe, Pareto]:
    """Solve a budget of bytes, or of bits."""
    if find_spec("scipy") is None:
        raise BudgetError(f"a budget of bytes or bits needs scipy; {install('budget')}")
    teacher, plan, budget = problem.teacher, problem.plan, recipe.budget
    assert budget is not None, "there is one to solve"
    options = layer_options(problem, recipe, pool)
    if not options:
        raise BudgetError("budget: no layer's weights are quantized, so there is nothing to choose; set weights.bits")
    fixed = _fixed_bytes(teacher, plan, set(options))
    weights = sum(g.weight(teacher, plan.layers[name].layer).numel() for name in options)
    least, most = (sum(pick(o.size for o in row) for row in options.values()) for pick in (min, max))
    if budget.bytes is not None:
        limit, in_units, nearest = float(budget.bytes - fixed), lambda size: size + fixed, f"bytes {least + fixed}"
    else:
        limit, in_units = (budget.mean_bits or 0.0) * weights, lambda size: size / weights
        nearest = f"mean_bits {math.ceil(1e4 * least / weights) / 1e4:g}"
    if least > limit:
        raise BudgetError(f"budget: {budget} cannot be met; the least is {nearest}")
    chosen = choose(options, limit)
    limits = [least + (most - least) * i / (CURVE - 1) for i in range(CURVE)]
    pareto = tuple((in_units(limit), sum(o.error for o in choose(options, limit).values())) for limit in limits)
    ruled = _ruled(recipe, plan)  # they keep their rules, in the order they came in
    rules = {name: _rule(option, _may_thin(recipe)) for name, option in chosen.items() if name not in ruled}
    return _with(recipe, layers={**rules, **recipe.layers}), pareto


def _may_thin(recipe: Recipe) -> bool:
    """Whether each layer may have a sparsity of its own."""
    return recipe.prune is not None and recipe.prune.pattern == "unstructured"


def _ruled(recipe: Recipe, plan: Plan) -> set[str]:
    """Layers that the user has said something about."""
    patterns = [pattern for pattern, rule in recipe.layers.items() if isinstance(rule, LayerRule)]
    return {n for n in plan.layers if any(fnmatchcase(n, pattern) for pattern in patterns)}


def _with(recipe: Recipe, **fields: object) -> Recipe:
    return recipe.model_copy(update={"budget": None, **fields})


def _rule(option: Option, prunes: bool) -> LayerRule:
    pruned = {"prune": {"sparsity": option.sparsity}} if prunes else {}
    return LayerRule.model_validate({"weights": {"bits": option.bits}, **pruned})


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


def layer_options(problem: Problem, recipe: Recipe, pool: Callable) -> dict[str, list[Option]]:
    """What may become of each layer whose weights are quantized, and what that costs."""
    teacher, plan = problem.teacher, problem.plan
    fixed, unit = _ruled(recipe, plan), 8 if recipe.budget and recipe.budget.bytes else 1
    independent = replace(problem, method=problem.method.model_copy(update={"sequential": False}))
    found: dict[str, list[Option]] = {}
    jobs = list(layer_jobs(independent, {}, split_halves=True))
    rounded = pool(curve_of_widths, (job for job in jobs if job.spec.bits))
    pruned = pool(curve_of_zeros, jobs) if recipe.prune is not None and recipe.prune.pattern != "channels" else iter(())
    reference = NetworkProbe(teacher, problem.signal)
    zeros = {t.name: dict(at_output(t, reference.output_change(t.probes))) for t in pruned}
    for widths in rounded:
        errors = dict(at_output(widths, reference.output_change(widths.probes)))
        size, spec = g.weight(teacher, plan.layers[widths.name].layer).numel(), plan.layers[widths.name].weights
        assert spec is not None and spec.bits is not None, "a job that is tried at every width is rounded"
        bits = [spec.bits] if widths.name in fixed else list(WIDTHS)
        shares = SPARSITIES
        if widths.name in fixed or not _may_thin(recipe):
            shares = (spec.prune.count / size if spec.prune and not spec.prune.free else 0.0,)
        lost = zeros.get(widths.name, {0: 0.0})
        found[widths.name] = [
            Option(b, s, stored_size(size, b, round(s * size), unit), errors[b] + _between(lost, s * size))
            for b in bits
            for s in shares
        ]
    return found


def _between(curve: dict[int, float], count: float) -> float:
    return float(np.interp(count, list(curve), list(curve.values())))


def curve_of_widths(job: LayerJob) -> ErrorCurve:
    """Round one layer at every width; a pure function of the job.

    Raises:
        LayerError: the solver failed; names layer, method and shapes.
    """
    return measure_curve(job, _rounded)


def _rounded(job: LayerJob) -> Iterator[tuple[int, Tensor]]:
    for bits in WIDTHS:
        spec = WeightSpec(bits, job.spec.per_channel, job.spec.symmetric or bits == 8)
        q, qparams = solve_on_best_grid(replace(job, spec=spec))
        yield bits, dequantize(q.flatten(0, 1), qparams).view_as(job.weight)


def choose(options: dict[str, list[Option]], limit: float) -> dict[str, Option]:
    """One option a layer, least summed error, sizes within the limit: an integer program, by scipy's HiGHS."""
    from scipy import optimize, sparse

    flat = [(n, option) for n, row in options.items() for option in row]
    index = {name: i for i, name in enumerate(options)}
    one = sparse.coo_array((np.ones(len(flat)), ([index[n] for n, _ in flat], range(len(flat)))))
    sizes = np.array([[option.size for _, option in flat]], dtype=float)
    errors = np.array([option.error for _, option in flat])
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
