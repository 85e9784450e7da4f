"""AdaRound: learn for every weight whether it is rounded up or down, on the layer's quadratic form."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from datafree.execution import add_macs
from datafree.quantization import dequantize
from datafree.recipe import AdaRound
from datafree.records import QParams
from datafree.solve.jobs import LayerJob
from datafree.solve.rounding.nearest import nearest

ZETA, GAMMA = 1.1, -0.1  # paper, 3.3: the sigmoid is stretched to (GAMMA, ZETA) and clipped, so that it reaches 0 and 1
BETA = (20.0, 2.0)  # from, to; along half a cosine
WARM = 0.2  # share of the steps without regulariser


def adaround(job: LayerJob, qparams: QParams) -> Float[Tensor, "g o n"]:
    """Learn the rounding by Adam and take each row as learned or to nearest, whichever errs less (arXiv 2004.10568).

        w' = scale clip(floor(w / scale) + h(v)),   h(v) = clip(sigmoid(v) (zeta - gamma) + gamma, 0, 1)
        loss = d H d^T / (the same of nearest) + regularizer mean(1 - |2 h(v) - 1|^beta),   d = w - w'

    for every output channel w; beta falls, so that first the undecided are left alone. The paper averages (d u)^2 over
    inputs u; what that comes to needs H alone. Relative to the error of nearest (ours), one regularizer fits channels
    of every size and every number of bits.
    """
    return torch.cat([_adaround(block, qparams) for block in job.blocks()], 2)


def _adaround(job: LayerJob, qparams: QParams) -> Float[Tensor, "g o n"]:
    method, weight, h = job.method, job.weight, job.moments.cov
    assert isinstance(method, AdaRound), "the table calls this for its own method"
    start = nearest(job, qparams)
    start_error = _error(start, job, qparams)
    zero_point = qparams.zero_point[:, None]
    ratio = weight.flatten(0, 1) / qparams.scale[:, None]
    floor = ratio.floor()
    may = 1.0 if job.keep is None else job.keep.flatten(0, 1)  # what is zero stays zero
    v = torch.logit((ratio - floor - GAMMA) / (ZETA - GAMMA)).requires_grad_(True)  # h(V) = W / scale - floor
    optimizer = torch.optim.Adam([v], lr=method.lr)
    with torch.enable_grad():
        for step in range(method.steps):
            up = (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1) * may
            q = (floor + up + zero_point).clamp(qparams.qmin, qparams.qmax)
            difference = weight - dequantize(q, qparams).view_as(weight)
            add_macs(weight.numel() * weight.shape[2])
            slope = 2 * difference.detach() @ h  # of d H d^T: spares autograd a second product with H
            loss = ((difference * slope).sum(2) / start_error.clamp(min=1e-30)).mean()
            loss = loss + method.regularizer * _undecided(up, step / method.steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    learned = (floor + (v.detach() > 0) * may + zero_point).clamp(qparams.qmin, qparams.qmax).view_as(weight)
    better = _error(learned, job, qparams) < start_error
    return torch.where(better[:, :, None], learned, start)


def _undecided(up: Tensor, progress: float) -> Tensor | float:
    """The paper's regulariser: 1 where every h(v) is 1/2, 0 where all are 0 or 1."""
    if progress < WARM:
        return 0.0
    beta = BETA[1] + (BETA[0] - BETA[1]) * (1 + math.cos(math.pi * (progress - WARM) / (1 - WARM))) / 2
    return (1 - (2 * up - 1).abs().pow(beta)).mean()


def _error(q: Tensor, job: LayerJob, qparams: QParams) -> Float[Tensor, "g o"]:
    """Error of every output channel, d H d^T."""
    d = (job.weight - dequantize(q.flatten(0, 1), qparams).view_as(q)).double()
    return ((d @ job.moments.cov.double()) * d).sum(2)
