"""The paper's layer-wise training: straight-through rounding, Adam, a few hundred iterations on drawn inputs."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from datafree.affine import dequantize, quantize
from datafree.records import LayerJob, QParams


def sgd(job: LayerJob, qparams: QParams) -> Float[Tensor, "g o n"]:
    """Train float weights whose rounding reproduces the layer's output (paper 3.3; optimiser and rates are ours).

    Each step sees inputs drawn ahead of time, every row used once before any is used again. The gradient of the
    rounded weights goes straight to the float ones.
    """
    method = job.method
    assert job.rows is not None, "sgd needs drawn inputs"
    weight = job.weight.clone().requires_grad_(True)

    optimizer = torch.optim.Adam([weight], lr=method.lr * float(job.weight.abs().max()))  # type: ignore[attr-defined]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, method.steps)  # type: ignore[attr-defined]
    batches = job.rows.split(method.rows)  # type: ignore[attr-defined]
    with torch.enable_grad():
        for step in range(method.steps):  # type: ignore[attr-defined]
            u = batches[step % len(batches)].permute(1, 0, 2)  # (g, r, n)
            difference = job.weight - _rounded(weight, qparams)
            moved = u @ difference.transpose(1, 2)
            loss = (moved - moved.mean(1, keepdim=True)).square().sum(2).mean()  # the mean goes into the bias
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return quantize(weight.detach().flatten(0, 1), qparams).view_as(job.weight)


def _rounded(weight: Tensor, qparams: QParams) -> Tensor:
    rows = weight.flatten(0, 1)
    q = dequantize(quantize(rows, qparams), qparams).view_as(weight)
    return weight + (q - weight).detach()
