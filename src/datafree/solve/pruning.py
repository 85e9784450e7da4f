"""Pruning of one layer: which weights go, a few at a time, and least squares of those that stay after each time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from datafree.execution import add_macs
from datafree.quantization import Pattern, in_cells, without_least
from datafree.records import PruneSpec
from datafree.solve.jobs import LayerJob
from datafree.solve.rounding import rounding_method
from datafree.solve.rounding.gptq import damped

ROUGH, EXACT = 1e-2, 1e-6  # residual at which conjugate gradients stop, as a share of the first: on the way, at the end
MOST_STEPS = 500
SWAPS = 12  # rounds in which weights that went may come back for others
SWAPPED = 0.05  # share of the weights kept that may change places in one round, at first


def pruned(job: LayerJob) -> LayerJob:
    """The job with the weights that stay, refit by least squares where the method refits; `keep` marks them."""
    spec, method = job.spec.prune, rounding_method(job.method)
    if spec is None or not (spec.count or spec.columns):
        return job
    if spec.columns:
        keep = _without_columns(job, spec.columns)
    elif spec.score == "magnitude":
        keep = without_least(job.weight.abs(), spec.count, spec.pattern)
    elif method.refit_damping:
        weight, keep = _refit_gradually(job, spec, method.refit_damping(job.method))
        return replace(job, weight=weight.float(), keep=keep)
    else:
        keep = without_least(job.weight.square() * job.moments.variance[:, None], spec.count, spec.pattern)
    weight = job.weight * keep
    if method.refit_damping:
        h = damped(job.moments.cov, method.refit_damping(job.method))
        weight = refit(job.weight.double(), h, inverse(h), keep, weight.double(), EXACT)
    target = job.weight if method.train_float else None  # the others round what stays
    return replace(job, weight=weight.float(), keep=keep, target=target)


def _without_columns(job: LayerJob, columns: tuple[int, ...]) -> Bool[Tensor, "g o n"]:
    groups, _, taps = job.weight.shape
    stays = torch.ones(groups * taps // job.kernel_size, dtype=torch.bool)
    stays[list(columns)] = False
    return stays[:, None].expand(-1, job.kernel_size).reshape(groups, 1, taps).expand_as(job.weight)


def _refit_gradually(job: LayerJob, spec: PruneSpec, damping: float) -> tuple[Tensor, Tensor]:
    h = damped(job.moments.cov, damping)
    rough, inverted = h.float(), inverse(h)
    counts = count_schedule(spec, job.weight.numel())
    *_, last = thinned(job.weight, rough, inverted.float(), counts, spec.pattern)
    weight, keep = swapped(job.weight, rough, inverted.float(), *last, spec.pattern)
    return refit(job.weight.double(), h, inverted, keep, weight.double(), EXACT), keep


def count_schedule(spec: PruneSpec, size: int) -> list[int]:
    """How many weights are gone after each step: every step takes the same share of those that are left (ours)."""
    left = 1 - spec.count / size
    return [*(round(size * (1 - left ** (k / spec.steps))) for k in range(1, spec.steps)), spec.count]


def thinned(
    weight: Float[Tensor, "g o n"], h: Tensor, inverted: Tensor, counts: Iterable[int], pattern: Pattern | None
) -> Iterator[tuple[Float[Tensor, "g o n"], Bool[Tensor, "g o n"]]]:
    """Remove the weights that cost least and refit the others, again and again (ours, after OBC, arXiv 2208.11580).

    What removing w_j costs lies between w_j^2 H_jj, nothing making up for it, and w_j^2 / (H^-1)_jj, everything that
    was there at first making up for it; the score is the geometric mean.

    Yields:
        The weights after each count, and which of them stay.
    """
    price = price_of(h, inverted, weight)
    x, keep = weight, torch.ones_like(weight, dtype=torch.bool)
    for count in counts:
        keep = without_least(torch.where(keep, x.square() * price, -1.0), count, pattern)
        x = refit(weight, h, inverted, keep, x * keep, ROUGH)
        yield x, keep


def swapped(
    weight: Tensor, h: Tensor, inverted: Tensor, x: Tensor, keep: Tensor, pattern: Pattern | None
) -> tuple[Tensor, Tensor]:
    """Let weights that went come back for others that cost less, as long as the error falls (ours).

    Back with w_j, the error falls by about (e H)_j^2 / price_j, e = w - x, once the others are at their best.
    """
    price, error, share = price_of(h, inverted, weight), square_error(weight - x, h), SWAPPED
    for _ in range(SWAPS):
        gain = torch.where(keep, -torch.inf, times(weight - x, h).square() / price)
        loss = torch.where(keep, x.square() * price, torch.inf)
        back, gone = _pairs(gain, loss, max(1, round(share * int(keep.sum()))), pattern)
        if not len(back):
            break
        other = keep.flatten().index_fill(0, back, True).index_fill_(0, gone, False).view_as(keep)
        trial = refit(weight, h, inverted, other, x * other, ROUGH)
        new = square_error(weight - trial, h)
        if new < error:
            x, keep, error = trial, other, new
        else:
            share /= 4  # too many at once
    return x, keep


def _pairs(gain: Tensor, loss: Tensor, most: int, pattern: Pattern | None) -> tuple[Tensor, Tensor]:
    """Flat indices of weights to take back and to let go, in pairs that gain; of n:m patterns, one pair a cell."""
    if pattern is None:
        up = gain.flatten().topk(min(most, gain.numel()))
        down = loss.flatten().topk(min(most, loss.numel()), largest=False)
        good = up.values > down.values
        return up.indices[good], down.indices[good]
    flat = in_cells(torch.arange(gain.numel()).view_as(gain), pattern)
    up, down = in_cells(gain, pattern).max(3, keepdim=True), in_cells(loss, pattern).min(3, keepdim=True)
    better = (up.values - down.values).flatten()
    best = better.topk(min(most, len(better)))
    chosen = best.indices[best.values > 0]
    back, gone = (flat.take_along_dim(side.indices, 3).flatten()[chosen] for side in (up, down))
    return back, gone


def refit(
    weight: Float[Tensor, "g o n"],
    h: Float[Tensor, "gb m m"],
    inverted: Float[Tensor, "gb m m"],
    keep: Bool[Tensor, "g o n"],
    start: Float[Tensor, "g o n"],
    tolerance: float,
) -> Float[Tensor, "g o n"]:
    """Least squares of every row on its own support, all rows at once (ours):

        minimise (w - x) H (w - x)^T,   x_j = 0 where `keep` is False

    by conjugate gradients. H^-1, restricted to the support, is nearly the inverse needed there, so that a few products
    with matrices replace one factorisation a row.

    Args:
        h, inverted: H, positive definite, and its inverse; of many taps, diagonal blocks.
        start: weights that are zero where they must be.
        tolerance: residual to stop at, as a share of that without any refit.
    """
    x = start
    r = times(weight - x, h) * keep
    enough = tolerance**2 * (times(weight * ~keep, h) * keep).square().sum(2, keepdim=True)
    z = times(r, inverted) * keep
    p, rz = z, (r * z).sum(2, keepdim=True)
    for _ in range(MOST_STEPS):
        open_rows = r.square().sum(2, keepdim=True) > enough
        if not bool(open_rows.any()):
            break
        hp = times(p, h) * keep
        step = torch.where(open_rows, rz / (p * hp).sum(2, keepdim=True).clamp(min=1e-30), 0.0)
        x, r = x + step * p, r - step * hp
        z = times(r, inverted) * keep
        old, rz = rz, (r * z).sum(2, keepdim=True)
        p = z + torch.where(open_rows, rz / old.clamp(min=1e-30), 0.0) * p
    return x


def inverse(h: Float[Tensor, "gb m m"]) -> Float[Tensor, "gb m m"]:
    add_macs(h.numel() * h.shape[2] // 2)
    return torch.cholesky_inverse(torch.linalg.cholesky(h))


def price_of(h: Tensor, inverted: Tensor, weight: Tensor) -> Float[Tensor, "g 1 n"]:
    alone, helped = (m.diagonal(dim1=1, dim2=2).reshape(weight.shape[0], 1, -1) for m in (h, inverted))
    return (alone / helped).sqrt()


def square_error(off: Float[Tensor, "g o n"], h: Float[Tensor, "gb m m"]) -> float:
    return float((times(off, h) * off).sum())


def times(x: Float[Tensor, "g o n"], h: Float[Tensor, "gb m m"]) -> Float[Tensor, "g o n"]:
    """x H; of many taps, with each of the diagonal blocks that are known."""
    size = h.shape[2]
    add_macs(x.numel() * size)
    if size == x.shape[2]:
        return x @ h
    blocks = x.unflatten(2, (-1, size)).transpose(1, 2)  # (g, b, o, m)
    return (blocks @ h.view(*blocks.shape[:2], size, size)).transpose(1, 2).flatten(2)
