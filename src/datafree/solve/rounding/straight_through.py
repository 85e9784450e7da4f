"""The paper's layer-wise training: straight-through rounding, Adam, a few hundred iterations on drawn inputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from datafree.execution import add_macs
from datafree.quantization import dequantize, quantize
from datafree.recipe import StraightThrough
from datafree.records import QParams
from datafree.solve.jobs import LayerJob

HELD_OUT = (32, 4096)  # rows, at least and at most; fewer would say nothing, more nothing new
LOOKS = 4  # at the rows held out, while training


def straight_through(job: LayerJob, qparams: QParams) -> Float[Tensor, "g o n"]:
    """Train float weights whose rounding reproduces the layer's output (the paper; loss, optimiser and rates are ours).

    The gradient of the rounded weights goes straight to the float ones.
    """
    keep = job.keep
    kept = lambda weight: weight if keep is None else weight * keep  # noqa: E731
    trained = kept(_train(job, lambda weight: _rounded(kept(weight), qparams)))
    return quantize(trained.flatten(0, 1), qparams).view_as(job.weight)


def trained(job: LayerJob) -> Float[Tensor, "g o n"]:
    """Train the weights that stay, as float (the paper; how is ours)."""
    keep = job.keep
    return job.weight if keep is None else _train(job, lambda weight: weight * keep) * keep


def _train(job: LayerJob, form: Callable[[Tensor], Tensor]) -> Float[Tensor, "g o n"]:
    """Weights whose `form`, rounded or masked, reproduces the output of the target's.

    Each output channel becomes what erred least on rows held out, at the start or at a later look.
    """
    method, target = job.method, job.weight if job.target is None else job.target
    assert isinstance(method, StraightThrough), "the table calls this for its own method"
    held_out, batches = _inputs(job, method.rows)
    weight = job.weight.clone().requires_grad_(True)
    best, best_error = job.weight, _moved(target - form(job.weight), held_out).mean(1)

    optimizer = torch.optim.Adam([weight], lr=method.lr * float(job.weight.abs().max()))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, method.steps)
    looks = {round(method.steps * (i + 1) / LOOKS) for i in range(LOOKS)}
    for step in range(method.steps):
        with torch.enable_grad():
            loss = _moved(target - form(weight), next(batches)).sum(2).mean()
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        schedule.step()
        if step + 1 in looks:
            now = weight.detach().clone()
            error = _moved(target - form(now), held_out).mean(1)
            better = error < best_error
            best, best_error = torch.where(better[:, :, None], now, best), torch.where(better, error, best_error)
    return best


def _inputs(job: LayerJob, count: int) -> tuple[Tensor, Iterator[Tensor]]:
    """Rows held out, and `count` of every step: drawn afresh, or drawn ahead and each used once before any again.

    A quarter of the rows drawn ahead is held out; below 128 rows all of them serve for both.
    """
    if job.draws is not None:
        rng = torch.Generator().manual_seed(job.seed + 1)
        return job.draws(HELD_OUT[1], rng), (job.draws(count, rng) for _ in itertools.count())
    assert job.rows is not None, "straight_through needs drawn inputs"
    quarter = min(len(job.rows) // 4, HELD_OUT[1])
    held_out, seen = job.rows.split([quarter, len(job.rows) - quarter]) if quarter >= HELD_OUT[0] else [job.rows] * 2
    return held_out, itertools.cycle(seen.split(count))


def _moved(difference: Tensor, rows: Tensor) -> Float[Tensor, "g r o"]:
    """Square of what a change of the weights does to each output, less its mean, which goes into the bias."""
    add_macs((1 + difference.requires_grad) * rows.numel() * difference.shape[1])
    moved = rows.permute(1, 0, 2) @ difference.transpose(1, 2)
    return (moved - moved.mean(1, keepdim=True)).square()


def _rounded(weight: Tensor, qparams: QParams) -> Tensor:
    rows = weight.flatten(0, 1)
    q = dequantize(quantize(rows, qparams), qparams).view_as(weight)
    return weight + (q - weight).detach()
