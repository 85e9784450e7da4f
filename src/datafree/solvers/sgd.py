"""The paper's layer-wise training: straight-through rounding, Adam, a few hundred iterations on drawn inputs."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from datafree.affine import dequantize, quantize
from datafree.records import LayerJob, QParams

HELD_OUT = (32, 4096)  # rows, at least and at most; fewer would say nothing, more nothing new
LOOKS = 4  # at the rows held out, while training


def sgd(job: LayerJob, qparams: QParams) -> Float[Tensor, "g o n"]:
    """Train float weights whose rounding reproduces the layer's output (paper 3.3; optimiser and rates are ours).

    Each step sees inputs drawn ahead of time, every row used once before any is used again. The gradient of the
    rounded weights goes straight to the float ones. A quarter of the rows is held out; each output channel becomes
    what erred least on them, at the start (rounding to nearest) or at a later look. Below 128 rows all of them serve
    for both.
    """
    method = job.method
    assert job.rows is not None, "sgd needs drawn inputs"
    quarter = min(len(job.rows) // 4, HELD_OUT[1])
    held_out, seen = job.rows.split([quarter, len(job.rows) - quarter]) if quarter >= HELD_OUT[0] else [job.rows] * 2
    weight = job.weight.clone().requires_grad_(True)
    best = quantize(job.weight.flatten(0, 1), qparams).view_as(job.weight)
    best_error = _error(best, held_out, job, qparams)

    optimizer = torch.optim.Adam([weight], lr=method.lr * float(job.weight.abs().max()))  # type: ignore[attr-defined]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, method.steps)  # type: ignore[attr-defined]
    batches = seen.split(method.rows)  # type: ignore[attr-defined]
    looks = {round(method.steps * (i + 1) / LOOKS) for i in range(LOOKS)}  # type: ignore[attr-defined]
    for step in range(method.steps):  # type: ignore[attr-defined]
        with torch.enable_grad():
            loss = _moved(job.weight - _rounded(weight, qparams), batches[step % len(batches)]).sum(2).mean()
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        schedule.step()
        if step + 1 in looks:
            q = quantize(weight.detach().flatten(0, 1), qparams).view_as(job.weight)
            error = _error(q, held_out, job, qparams)
            better = error < best_error
            best, best_error = torch.where(better[:, :, None], q, best), torch.where(better, error, best_error)
    return best


def _error(q: Tensor, rows: Tensor, job: LayerJob, qparams: QParams) -> Float[Tensor, "g o"]:
    return _moved(job.weight - dequantize(q.flatten(0, 1), qparams).view_as(q), rows).mean(1)


def _moved(difference: Tensor, rows: Tensor) -> Float[Tensor, "g r o"]:
    """Square of what a change of the weights does to each output, less its mean, which goes into the bias."""
    moved = rows.permute(1, 0, 2) @ difference.transpose(1, 2)
    return (moved - moved.mean(1, keepdim=True)).square()


def _rounded(weight: Tensor, qparams: QParams) -> Tensor:
    rows = weight.flatten(0, 1)
    q = dequantize(quantize(rows, qparams), qparams).view_as(weight)
    return weight + (q - weight).detach()
