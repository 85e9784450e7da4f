"""Bits and zeros of every layer's weights, to choose from: what they do to the network's output, and what they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np
from torch import Tensor

from datafree import graph as g
from datafree.allocation.sparsity import ErrorCurve, at_output, curve_of_zeros, measure_curve
from datafree.quantization import dequantize, stored_size
from datafree.recipe import LayerRule, Recipe
from datafree.records import WeightSpec
from datafree.solve import LayerJob, NetworkProbe, Plan, Problem, layer_jobs, solve_on_best_grid

WIDTHS = (2, 3, 4, 5, 6, 7, 8)
SPARSITIES = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # to choose from, where the recipe prunes


@dataclass(frozen=True)
class Option:
    """One way to treat a layer: `error` is what it does to the network's output, as a share of its variance.

    bits: of the weights; None = they are not chosen.
    size: what it takes: bytes or bits of weights, or multiply-adds times bits.
    input_bits: of what the layer reads; None = they are not chosen.
    """

    bits: int | None
    sparsity: float
    size: int
    error: float
    input_bits: int | None = None


def may_thin(recipe: Recipe) -> bool:
    """Whether each layer may have a sparsity of its own."""
    return recipe.prune is not None and recipe.prune.pattern == "unstructured"


def layers_with_rules(recipe: Recipe, plan: Plan) -> set[str]:
    """Layers that the user has said something about."""
    patterns = [pattern for pattern, rule in recipe.layers.items() if isinstance(rule, LayerRule)]
    return {n for n in plan.layers if any(fnmatchcase(n, pattern) for pattern in patterns)}


def weight_options(problem: Problem, recipe: Recipe, pool: Callable) -> dict[str, list[Option]]:
    """What may become of each layer whose weights are quantized, and what that costs."""
    teacher, plan = problem.teacher, problem.plan
    fixed, unit = layers_with_rules(recipe, plan), 8 if recipe.budget and recipe.budget.bytes else 1
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
        if widths.name in fixed or not may_thin(recipe):
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
