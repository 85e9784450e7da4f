"""SQuant: flip single roundings until their errors cancel in kernels and output channels. No inputs, no gradient."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from datafree.quantization import quantize
from datafree.records import QParams
from datafree.solve.jobs import LayerJob


def squant(job: LayerJob, qparams: QParams) -> Float[Tensor, "g o n"]:
    """Round to nearest, then round single elements the other way until sums of errors are small (arXiv 2202.07471).

    With e = q - zero_point - w / scale, one flip moves an element by one step towards its other neighbour:

        SQuant-K:  |sum of e over each kernel| <= 1/2, flipping those errors first that are largest
        SQuant-C:  |sum of e over each output channel| <= 1/2, flipping at most one element of each kernel, the one
                   that SQuant-K would have flipped next, or taking back the one it flipped last

    Kernels end below one step. Clipped weights count with their whole error but cannot be flipped, so that sums
    beside them may stay above the bounds (ours; the paper clips nothing).
    """
    q = quantize(job.weight.flatten(0, 1), qparams).double()  # (g * o, n)
    exact = job.weight.flatten(0, 1).double() / qparams.scale[:, None] + qparams.zero_point[:, None]
    kernels = (len(q), -1, job.kernel_size)
    other = q + (exact - q).sign()
    inside = (other >= qparams.qmin) & (other <= qparams.qmax)
    flips, candidates = _flips((q - exact).view(kernels), inside.view(kernels))
    q = torch.where(flips.view_as(q), other, q)
    flips, _ = _flips(q - exact, candidates.view_as(q))
    return (q + flips * (exact - q).sign()).float().view_as(job.weight)


def _flips(error: Float[Tensor, "*rows n"], may: Bool[Tensor, "*rows n"]) -> tuple[Tensor, Tensor]:
    """The elements to flip so that each sum over n comes within 1/2, and the one whose flip would be next or last."""
    total = error.sum(-1, keepdim=True)
    may = may & (error * total > 0)
    count = torch.minimum(total.abs().round(), may.sum(-1, keepdim=True))
    rank = torch.where(may, error.abs(), 0).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    overshot = (count > 0) & (count >= total.abs())
    return may & (rank < count), may & (rank == count - overshot.double())
