"""The integer grid of a layer's weights, chosen by the error it causes at the layer's output."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from datafree.execution import add_macs
from datafree.quantization import CLIP_RATIOS, dequantize, search_grid
from datafree.records import Moments, QParams
from datafree.solve.jobs import LayerJob
from datafree.solve.rounding import rounding_method

FACTORS = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2)  # of the scale that is best for rounding to nearest
AT_ONCE = 2**22  # weights, times the grids that are tried at once
MANY_TAPS = 1024  # above, one scale is tried: solving costs the square of the taps


def solve_on_best_grid(job: LayerJob) -> tuple[Float[Tensor, "g o n"], QParams]:
    """Round a layer's weights, where the method tries grids on the one whose output errs least (ours)."""
    method, qparams = rounding_method(job.method), weight_grid(job)
    if method.tries_grids and job.weight.shape[2] <= MANY_TAPS:
        q, qparams = _best_of_grids(job, qparams)
    else:
        q = method.round(job, qparams)
    q = q if method.finish is None else method.finish(q, job, qparams)
    return zeros_kept(q, job, qparams), qparams


def _best_of_grids(job: LayerJob, qparams: QParams) -> tuple[Float[Tensor, "g o n"], QParams]:
    """Solve on several grids; keep one for every row or for the tensor.

    As many at once, as rows of one job, as leave room: what solving holds of a large layer is several times its size.
    """
    first, *others = torch.tensor(FACTORS).split(max(1, AT_ONCE // job.weight.numel()))
    error, q, scale, zero_point = _best_of(first, job, qparams)
    for factors in others:
        other = _best_of(factors, job, qparams)
        is_better = other[0] < error
        error, scale, zero_point = (
            torch.where(is_better, new, old)
            for new, old in zip((other[0], *other[2:]), (error, scale, zero_point), strict=True)
        )
        q[is_better] = other[1][is_better]
    one = slice(None) if job.spec.per_channel else slice(1)
    return q, replace(qparams, scale=scale.flatten()[one], zero_point=zero_point.flatten()[one])


def _best_of(
    factors: Float[Tensor, " f"], job: LayerJob, qparams: QParams
) -> tuple[Float[Tensor, "g o"], Float[Tensor, "g o n"], Float[Tensor, "g o"], Tensor]:
    """Errors, integers, scales and zero points of every row, on the best of some grids."""
    groups, rows, taps = job.weight.shape
    num = len(factors)
    scale = (_each_row(qparams.scale, groups, rows) * factors.view(1, num, 1)).flatten()
    zero_point = _each_row(qparams.zero_point, groups, rows).expand(groups, num, rows).flatten()
    trial = replace(
        qparams, scale=torch.maximum(scale, _smallest_scale(job, (groups, num, rows))), zero_point=zero_point
    )
    copies = lambda x: x[:, None].expand(groups, num, rows, taps).reshape(groups, -1, taps)  # noqa: E731
    keep = None if job.keep is None else copies(job.keep)
    stacked = replace(job, weight=copies(job.weight), keep=keep)
    q = rounding_method(job.method).round(stacked, trial)
    off = stacked.weight - dequantize(q.flatten(0, 1), trial).view_as(q)
    error = row_power(off, job.moments).view(groups, num, rows)
    if not job.spec.per_channel:
        error = error.sum((0, 2), keepdim=True).expand_as(error)
    best = error.argmin(1, keepdim=True)  # (g, 1, o)
    pick = lambda x: x.view(groups, num, rows, -1).take_along_dim(best[..., None], 1)  # noqa: E731
    found = (pick(x).view(groups, rows) for x in (trial.scale, trial.zero_point))
    return error.take_along_dim(best, 1)[:, 0], pick(q).view_as(job.weight), *found


def zeros_kept(q: Float[Tensor, "g o n"], job: LayerJob, qparams: QParams) -> Float[Tensor, "g o n"]:
    """Integers that stand for zero where the job's weights must be zero."""
    if job.keep is None:
        return q
    zero = qparams.zero_point.to(q).expand(q.shape[0] * q.shape[1]).view(*q.shape[:2], 1)
    return torch.where(job.keep, q, zero)


def _each_row(values: Tensor, groups: int, rows: int) -> Tensor:
    return values.expand(groups * rows).view(groups, 1, rows)


def weight_grid(job: LayerJob) -> QParams:
    """Clipping by the error that rounding to nearest causes, sum_j H_jj (w_j - w'_j)^2; one scale a row or in all."""
    importance = job.moments.variance[:, None].expand_as(job.weight)
    shape = (-1, job.weight.shape[2]) if job.spec.per_channel else (1, -1)
    assert job.spec.bits is not None, "there is something to round"
    ratios = CLIP_RATIOS if rounding_method(job.method).clips(job.method) else (1.0,)
    qparams = search_grid(
        job.weight.reshape(shape),
        bits=job.spec.bits,
        symmetric=job.spec.symmetric,
        importance=importance.reshape(shape),
        ratios=ratios,
    )
    smallest = _smallest_scale(job, (job.weight.shape[0], 1, job.weight.shape[1]))
    smallest = smallest if job.spec.per_channel else smallest.max()[None]
    return replace(qparams, scale=torch.maximum(qparams.scale, smallest))


def _smallest_scale(job: LayerJob, shape: tuple[int, int, int]) -> Float[Tensor, " c"]:
    """The scale of every row below which the corrected bias would not fit into 32 bits, for (g, copies, o) rows."""
    if job.input_scale is None:
        return torch.zeros(1)
    reach = (job.weight.abs() * (job.moments.mean.abs() + job.moments.student_mean.abs())[:, None]).sum(2)
    smallest = (job.bias.view_as(reach).abs() + reach) / (2**30 * job.input_scale)
    smallest = smallest if job.spec.per_channel else smallest.max().expand_as(smallest)
    return smallest[:, None].expand(shape).flatten()


def output_power(weight: Float[Tensor, "g o n"], moments: Moments) -> float:
    """Variance of the layer's output summed over channels, W H W^T."""
    return float(row_power(weight, moments).sum())


def row_power(weight: Float[Tensor, "g o n"], moments: Moments) -> Float[Tensor, "g o"]:
    """Variance of every output channel, w H w^T."""
    if moments.cov.dim() == 2:
        return (weight.double().square() * moments.cov.double()[:, None]).sum(2)
    total = torch.zeros(weight.shape[:2]).double()
    for part, block in zip(weight.split(moments.cov.shape[2], 2), moments.blocks(), strict=True):
        w = part.double()
        add_macs(w.numel() * w.shape[2])
        total += (w @ block.cov.double()).mul_(w).sum(2)
    return total
