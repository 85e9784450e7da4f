"""Weights that make up for the error upstream: least squares of the teacher's output on the student's input."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from datafree.execution import add_macs
from datafree.records import Moments
from datafree.solve.jobs import LayerJob
from datafree.solve.moments import shrunk
from datafree.solve.rounding.gptq import damped_diagonal, damped_factor

DAMPINGS = (0.01, 0.1, 1.0)  # shares of H's mean diagonal to choose from; the first where the recipe gives the share


def compensated(job: LayerJob) -> tuple[LayerJob, float]:
    """The job with float weights that make up for the error upstream, as far as that holds for images not seen (ours).

        W* = (W C + d W) (H + d)^-1,   C = Cov[u, u'],   target = W + a (W* - W)

    The share a and the damping d are the recipe's, or those that err least on one half of the images when W* comes from
    the other half.

    Returns:
        The job, and the share; 0 = there is nothing to make up for, or it would not hold: the job as it was.
    """
    share = job.method.compensation
    if job.moments.cross is None or job.moment_halves is None:
        return job, 0.0
    weight, damping = job.weight.double(), DAMPINGS[0]
    if share == "auto":
        damping, share = best_share(weight, *job.moment_halves)
    if not share:
        return job, 0.0
    best = least_squares(weight, job.moments, damping)
    return replace(job, weight=torch.lerp(weight, best, share).float()), share


def least_squares(weight: Float[Tensor, "g o n"], moments: Moments, damping: float) -> Float[Tensor, "g o n"]:
    """W*, float64, damped towards the weights as they are."""
    weights = weight.split(moments.cov.shape[2], 2)
    return torch.cat([_least_squares(w, block, damping) for w, block in zip(weights, moments.blocks(), strict=True)], 2)


def _least_squares(weight: Float[Tensor, "g o n"], moments: Moments, damping: float) -> Float[Tensor, "g o n"]:
    assert moments.cross is not None, "least squares needs Cov[u, u']"
    right = weight @ moments.cross.double()
    own = moments.cov.diagonal(dim1=1, dim2=2).double()
    right += (damped_diagonal(moments.cov, damping) - own)[:, None, :] * weight
    taps = weight.shape[2]
    add_macs(moments.cov.numel() * taps // 6 + 2 * weight.numel() * taps)
    return torch.cholesky_solve(right.transpose(1, 2), damped_factor(moments.cov, damping)).transpose(1, 2)


def best_share(weight: Float[Tensor, "g o n"], first: Moments, second: Moments) -> tuple[float, float]:
    """Damping and share a whose output error is least over both halves, each with W* from the other (ours).

    E |W u - (W + a S) u'|^2 = const - 2 a <S, W (C - H)> + a^2 <S H, S>,   S = W* - W

    W* is of H and C as shrunk for so few rows, the error of the other half's as they are, so that nothing biases it.
    """
    found = dict.fromkeys(DAMPINGS, (0.0, 0.0))
    for own, others in ((first, second.blocks()), (second, first.blocks())):
        own = shrunk(own)
        for damping in DAMPINGS:
            gain, power = found[damping]
            steps = (least_squares(weight, own, damping) - weight).split(own.cov.shape[2], 2)
            for w, step, other in zip(weight.split(own.cov.shape[2], 2), steps, others, strict=True):
                more = _gain_and_power(w, step, other)
                gain, power = gain + more[0], power + more[1]
            found[damping] = gain, power
    tried = []
    for damping, (gain, power) in found.items():
        share = max(0.0, min(1.0, gain / power)) if power > 0 else 0.0
        tried.append((2 * share * gain - share**2 * power, damping, share))
    _, damping, share = max(tried)
    return damping, share


def _gain_and_power(
    weight: Float[Tensor, "g o n"], step: Float[Tensor, "g o n"], moments: Moments
) -> tuple[float, float]:
    """<S, W (C - H)> and <S H, S> of one diagonal block."""
    assert moments.cross is not None, "both halves know Cov[u, u']"
    h = moments.cov.double()
    add_macs(2 * weight.numel() * h.shape[2])
    gain = float((step * (weight @ moments.cross.double().sub_(h))).sum())
    return gain, float(((step @ h) * step).sum())
