"""Optimal-brain rounding in closed form: no samples, no gradient, one Cholesky factor a layer."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from datafree.execution import add_macs
from datafree.quantization import dequantize, quantize
from datafree.recipe import Gptq
from datafree.records import QParams
from datafree.solve.jobs import LayerJob

BLOCK = 64  # columns rounded between two matrix products
ROWS = 256  # of H, put in order at a time


def gptq(job: LayerJob, qparams: QParams) -> Float[Tensor, "g o n"]:
    """Round columns one after another and let the later ones make up for the error of the earlier ones.

    With H = R R^T, R upper triangular, the error of a row is |(w - w') R|^2, and column k of that product depends on
    columns j <= k only. Going through k = 0, 1, ... the best integer is that nearest to

        w_k + sum_{j<k} (w_j - w'_j) R_jk / R_kk

    This is GPTQ (arXiv 2210.17323) without its matrix inverse: U = R^-1 is the Cholesky factor of H^-1 used there.
    Columns go in decreasing order of H_kk; H is damped by a share of its mean diagonal.
    """
    return torch.cat([_gptq(block, qparams) for block in job.blocks()], 2)


def _gptq(job: LayerJob, qparams: QParams) -> Float[Tensor, "g o n"]:
    assert isinstance(job.method, Gptq), "the table calls this for its own method"
    order, lower = _ordered_factor(job.moments.cov, job.method.damping)
    columns = order[:, None].expand_as(job.weight)
    w = torch.gather(job.weight, 2, columns).double()
    keep = None if job.keep is None else torch.gather(job.keep, 2, columns)
    q = _round_columns(w, lower, qparams, keep)
    return torch.gather(q, 2, torch.argsort(order, 1)[:, None].expand_as(job.weight))


def polished(q: Float[Tensor, "g o n"], job: LayerJob, qparams: QParams) -> Float[Tensor, "g o n"]:
    """Coordinate descent, in the recipe's number of passes: move one integer a row at a time to least output error.

    The error e H e^T of a row, e = w - w', falls or stays: element k moves by (e H)_k / H_kk, rounded to whole steps
    (ours).
    """
    assert isinstance(job.method, Gptq), "the table calls this for its own method"
    passes = job.method.polish
    if not passes:
        return q
    if job.moments.cov.shape[-1] != q.shape[2]:
        parts = zip(q.split(job.moments.cov.shape[-1], 2), job.blocks(), strict=True)
        return torch.cat([polished(part, block, qparams) for part, block in parts], 2)
    groups, rows, taps = q.shape
    add_macs((1 + passes) * q.numel() * taps)
    scale = qparams.scale.double().expand(groups * rows).view(groups, rows)
    h = job.moments.cov.double()
    slope = (job.weight - dequantize(q.flatten(0, 1), qparams).view_as(q)).double() @ h
    q = q.clone()
    for start in list(range(0, taps, BLOCK)) * passes:
        here = slice(start, min(start + BLOCK, taps))
        near, moved = h[:, here, here], torch.zeros(groups, rows, here.stop - start).double()
        slope_here = slope[:, :, here].clone()
        for k in range(here.stop - start):
            steps = torch.round(slope_here[:, :, k] / (near[:, k, k, None].clamp(min=1e-12) * scale))
            steps = steps if job.keep is None else steps * job.keep[:, :, start + k]
            old = q[:, :, start + k]
            new = (old + steps.to(q)).clamp(qparams.qmin, qparams.qmax)
            moved[:, :, k] = (new - old).double() * scale
            q[:, :, start + k] = new
            slope_here -= moved[:, :, k, None] * near[:, None, k]
        slope -= moved @ h[:, here]
    return q


def damped(h: Float[Tensor, "g n n"], share: float) -> Float[Tensor, "g n n"]:
    """A copy of H in float64 with `share` of its mean diagonal added to the diagonal."""
    found = h.to(torch.float64, copy=True)
    found.diagonal(dim1=1, dim2=2).copy_(damped_diagonal(h, share))
    return found


def damped_factor(h: Float[Tensor, "g n n"], share: float) -> Float[Tensor, "g n n"]:
    """The Cholesky factor of `damped`, in the memory of that one copy: of a wide layer it is large."""
    found = _as_lapack(h.shape).copy_(h)
    found.diagonal(dim1=1, dim2=2).copy_(damped_diagonal(h, share))
    return torch.linalg.cholesky(found, out=found)


def damped_diagonal(h: Float[Tensor, "g n n"], share: float) -> Float[Tensor, "g n"]:
    """The diagonal of `damped`."""
    diagonal = h.diagonal(dim1=1, dim2=2).double()
    return diagonal + share * diagonal.mean(1, keepdim=True).clamp(min=1e-12)


def _as_lapack(shape: torch.Size) -> Float[Tensor, "g n n"]:
    """Room for matrices whose columns lie together, so that a factor can take their place."""
    return torch.empty(shape, dtype=torch.float64).mT


def _ordered_factor(h: Float[Tensor, "g n n"], damping: float) -> tuple[Int[Tensor, "g n"], Float[Tensor, "g n n"]]:
    """The columns in decreasing order of H_kk, and the Cholesky factor of H, damped, with these columns read backwards.

    With H = R R^T in that order, R upper triangular, it is R read backwards. Of a wide layer H is large: it is put in
    order a few rows at a time, and its factor takes its place.
    """
    taps = h.shape[2]
    add_macs(h.numel() * taps // 6)
    diagonal = damped_diagonal(h, damping)
    order = torch.argsort(diagonal, dim=1, descending=True)
    backwards = order.flip(1)
    found = _as_lapack(h.shape)
    for rows in torch.arange(taps).split(ROWS):
        some = torch.gather(h, 1, backwards[:, rows, None].expand(-1, -1, taps))
        found[:, rows[0] : rows[-1] + 1] = torch.gather(some, 2, backwards[:, None].expand_as(some))
    found.diagonal(dim1=1, dim2=2).copy_(torch.gather(diagonal, 1, backwards))
    return order, torch.linalg.cholesky(found, out=found)


def _round_columns(w: Tensor, lower: Tensor, qparams: QParams, keep: Tensor | None) -> Float[Tensor, "g o n"]:
    """Integers of the columns, one after another.

    Args:
        lower: R (g, n, n) with its rows and columns read backwards.
    """
    groups, rows, taps = w.shape
    add_macs(w.numel() * taps // 2)
    q = torch.empty(groups, rows, taps)
    error = torch.zeros_like(w)
    for start in range(0, taps, BLOCK):
        stop = min(start + BLOCK, taps)
        factor = lower[:, taps - stop :, taps - stop : taps - start].flip(1, 2)  # (g, stop, block)
        debt = error[:, :, :start] @ factor[:, :start]  # (g, o, block)
        for k in range(start, stop):
            here = factor[:, :, k - start]  # column k of R
            owed = debt[:, :, k - start] + (error[:, :, start:k] @ here[:, start:k, None])[:, :, 0]
            target = w[:, :, k] + owed / here[:, k, None]
            target = target if keep is None else target * keep[:, :, k]
            column = quantize(target.flatten(), qparams)
            q[:, :, k] = column.view(groups, rows)
            error[:, :, k] = w[:, :, k] - dequantize(column, qparams).view(groups, rows)
    return q
