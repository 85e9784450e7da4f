"""How many weights each layer loses: so many that the next one would move the network's output as far in any layer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datafree import graph as g
from datafree.allocation.sensitivity import nearest_probes
from datafree.recipe import Nearest, Prune
from datafree.records import PruneSpec
from datafree.solve import (
    LayerJob,
    LayerPlan,
    NetworkProbe,
    Plan,
    Probe,
    Problem,
    count_schedule,
    damped,
    inverse,
    layer_jobs,
    output_power,
    rounding_method,
    shrunk,
    solver_context,
    thinned,
)

STEPS = 16  # of a layer's curve
SPARSEST = 0.985  # where it ends

Curve = tuple[tuple[int, float], ...]
"""Weights gone and squared error that causes, from (0, 0) on; slopes rise."""


@dataclass(frozen=True)
class ErrorCurve:
    """One layer by itself, pruned further and further or rounded at every width."""

    name: str
    points: tuple[tuple[int, float], ...]  # weights gone, or bits; error of the layer's output
    probes: tuple[Probe, ...]


def share_zeros(problem: Problem, prune: Prune, pool: Callable) -> Plan:
    """Move the recipe's count of zeros between the layers; their sum stays (ours).

    Every layer is pruned by itself, once, further and further. What an error of its output does to the network's is
    measured at a few points of that curve, on the images of the signal; both together give the error at the network's
    output as a function of its zeros. Errors of layers add up nearly, so the best counts have one slope. By magnitude,
    all layers share one threshold (the paper's way).
    """
    plan = problem.plan
    free = {
        n: i.weights.prune for n, i in plan.layers.items() if i.weights and i.weights.prune and i.weights.prune.free
    }
    if not free:
        return plan
    total = sum(spec.count for spec in free.values())
    if prune.score == "magnitude":
        counts = _below_one_threshold({n: g.weight(problem.teacher, plan.layers[n].layer) for n in free}, total)
    else:
        counts = allocate_by_slope(_curves(problem, pool, free), total)
    return replace(plan, layers={n: _with_count(i, counts.get(n)) for n, i in plan.layers.items()})


def _with_count(item: LayerPlan, count: int | None) -> LayerPlan:
    if count is None:
        return item
    assert item.weights is not None and item.weights.prune is not None, "it has a count of zeros"
    return replace(item, weights=replace(item.weights, prune=replace(item.weights.prune, count=count)))


def _below_one_threshold(weights: dict[str, Tensor], total: int) -> dict[str, int]:
    sizes = torch.cat([w.abs().flatten() for w in weights.values()])
    lost = torch.zeros(len(sizes), dtype=torch.bool).index_fill_(0, sizes.topk(total, largest=False).indices, True)
    parts = lost.split([w.numel() for w in weights.values()])
    return {name: int(part.sum()) for name, part in zip(weights, parts, strict=True)}


def _curves(problem: Problem, pool: Callable, free: dict[str, PruneSpec]) -> dict[str, Curve]:
    """Error at the network's output against zeros, of every layer."""
    method = problem.method if rounding_method(problem.method).refit_damping else Nearest()
    independent = replace(problem, method=method.model_copy(update={"sequential": False}))
    jobs = (job for job in layer_jobs(independent, {}, split_halves=True) if job.name in free)
    reference = NetworkProbe(problem.teacher, problem.signal)
    return {t.name: convex(list(at_output(t, reference.output_change(t.probes)))) for t in pool(curve_of_zeros, jobs)}


def at_output(found: ErrorCurve, moved: Iterable[float]) -> Iterator[tuple[int, float]]:
    """A curve's points with errors at the network's output, read between the probes along straight lines."""
    pairs = zip((p.error for p in found.probes), moved, strict=True)
    errors, outputs = zip(*sorted(pairs), strict=True)
    known = [(0.0, 0.0), *zip(errors, itertools.accumulate(outputs, max), strict=True)]  # more error costs no less
    for count, error in found.points:
        (a, low), (b, high) = next((pair for pair in itertools.pairwise(known) if error <= pair[1][0]), known[-2:])
        yield count, low + (high - low) * (error - a) / max(b - a, 1e-12)


def curve_of_zeros(job: LayerJob) -> ErrorCurve:
    """Prune one layer further and further; a pure function of the job.

    Raises:
        LayerError: H has no inverse; names layer, method and shapes.
    """
    size, asked = job.weight.numel(), job.spec.prune.count if job.spec.prune else 0
    most = max(min(round(SPARSEST * size), size - 1), asked)  # at least `asked`, so that the counts add up to the sum
    counts = count_schedule(PruneSpec(most, "output", STEPS), size)
    found = measure_curve(job, lambda half: ((int((w == 0).sum()), w) for w in _pruned_more_and_more(half, counts)))
    return replace(found, points=((0, 0.0), *found.points))


def measure_curve(job: LayerJob, attempts: Callable[[LayerJob], Iterable[tuple[int, Tensor]]]) -> ErrorCurve:
    """Try weights made from one half of the images, and measure their errors on the other.

    Args:
        attempts: function(job of the first half) -> (what was done, as a number; the weights that gave).
    """
    first, second = job.moment_halves or (job.moments, job.moments)
    with solver_context(job):
        power = max(output_power(job.weight, second), 1e-30)
        done, weights = zip(*attempts(replace(job, moments=shrunk(first), moment_halves=None)), strict=True)
        errors = [output_power(job.weight - weight, second) / power for weight in weights]
        return ErrorCurve(job.name, tuple(zip(done, errors, strict=True)), nearest_probes(job, errors, weights))


def _pruned_more_and_more(job: LayerJob, counts: list[int]) -> Iterator[Tensor]:
    damping = rounding_method(job.method).refit_damping
    if damping:
        h = damped(job.moments.cov, damping(job.method))
        yield from (w for w, _ in thinned(job.weight, h.float(), inverse(h).float(), counts, None))
        return
    order = (job.weight.square() * job.moments.variance[:, None]).flatten().argsort()
    for count in counts:
        yield job.weight.flatten().index_fill(0, order[:count], 0.0).view_as(job.weight)


def convex(points: list[tuple[int, float]]) -> Curve:
    """The lower hull of (count, error) points."""
    hull: list[tuple[int, float]] = []
    for x, y in sorted(points):
        if hull and x == hull[-1][0]:  # a step that took nothing more; the lower error came first
            continue
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (x - hull[-2][0]) >= (y - hull[-2][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        hull.append((x, y))
    return tuple(hull)


def allocate_by_slope(curves: dict[str, Curve], total: int) -> dict[str, int]:
    """Counts of least summed error for a sum of `total`: pieces of the curves in order of their slopes."""
    pieces = [
        ((b[1] - a[1]) / (b[0] - a[0]), b[0] - a[0], name)
        for name, curve in curves.items()
        for a, b in itertools.pairwise(curve)
    ]
    counts = dict.fromkeys(curves, 0)
    for _, size, name in sorted(pieces):
        taken = min(size, total)
        counts[name] += taken
        total -= taken
    return counts
