"""Affine integer grids: choose them, round to them, come back. Numbers only; nothing here knows layers or graphs."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from datafree.records import QParams

CLIP_RATIOS = tuple(1 - 0.9 * i / 40 for i in range(40))
TOGETHER = 2**16  # values rounded at a time, where several ratios fit


def signed_range(bits: int) -> tuple[int, int]:
    """qmin, qmax of a symmetric signed grid: -127..127 at 8 bits, so that zero_point 0 loses nothing."""
    return -(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1


def choose_qparams(low: Float[Tensor, " c"], high: Float[Tensor, " c"], *, bits: int, symmetric: bool) -> QParams:
    """The integer grid that covers [low, high] and holds 0 exactly.

    Args:
        low, high: smallest and largest real value of every row.
        bits: width, 2..8.
        symmetric: True = signed with zero_point 0; False = unsigned with a zero_point.
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    if symmetric:
        qmin, qmax = signed_range(bits)
        scale = torch.maximum(-low, high) / qmax
    else:
        qmin, qmax = 0, 2**bits - 1
        scale = (high - low) / qmax
    scale = torch.where(scale > 1e-12, scale, torch.ones_like(scale))  # an all-zero row: any grid will do
    zero_point = torch.zeros_like(scale) if symmetric else torch.round(-low / scale).clamp(qmin, qmax)
    return QParams(scale, zero_point.to(torch.int32), qmin, qmax)


def quantize(x: Float[Tensor, "..."], qparams: QParams) -> Float[Tensor, "..."]:
    """Integers (as floats) of `x`; scale and zero_point broadcast along dimension 0 where there is one for each row."""
    scale, zero_point = _along_rows(x, qparams)
    return (x / scale).round_().add_(zero_point).clamp_(qparams.qmin, qparams.qmax)


def dequantize(q: Float[Tensor, "..."], qparams: QParams) -> Float[Tensor, "..."]:
    """Real values of the integers `q`."""
    scale, zero_point = _along_rows(q, qparams)
    return (q - zero_point) * scale


def fake_quantize(x: Float[Tensor, "..."], qparams: QParams) -> Float[Tensor, "..."]:
    """Round `x` to the grid and come back."""
    scale, zero_point = _along_rows(x, qparams)
    return quantize(x, qparams).sub_(zero_point).mul_(scale)


def rounded_rows(rows: Float[Tensor, "c n"], bits: int) -> Float[Tensor, "c n"]:
    """Rows rounded to nearest, each on the grid from its least to its largest value."""
    return fake_quantize(rows, choose_qparams(rows.amin(1), rows.amax(1), bits=bits, symmetric=False))


def search_grid(
    rows: Float[Tensor, "c n"],
    *,
    bits: int,
    symmetric: bool,
    importance: Float[Tensor, "c n"] | None = None,
    ratios: tuple[float, ...] = CLIP_RATIOS,
) -> QParams:
    """Choose a grid for each row by the clipping ratio that minimises the weighted square error (ours).

    Args:
        rows: values, one grid for each row.
        importance: weight of each value's square error, same shape; None = all alike.
        ratios: shares of the full range to try; (1.0,) is the min-max grid.
    """
    low, high = rows.amin(1), rows.amax(1)
    assert ratios, "no clipping ratio was given"
    errors, trials = [], []
    for shares in torch.tensor(ratios).split(max(1, TOGETHER // max(1, rows.numel()))):
        ends = ((shares[:, None] * end).flatten() for end in (low, high))
        trial = choose_qparams(*ends, bits=bits, symmetric=symmetric)
        tried = rows.expand(len(shares), -1, -1).flatten(0, 1)
        error = fake_quantize(tried, trial).sub_(tried).square_().unflatten(0, (len(shares), len(rows)))
        errors.append((error if importance is None else error.mul_(importance)).sum(2))
        trials.append(trial)
    best = torch.cat(errors).argmin(0, keepdim=True)
    scale = torch.cat([t.scale.view(-1, len(rows)) for t in trials]).gather(0, best)[0]
    zero_point = torch.cat([t.zero_point.view(-1, len(rows)) for t in trials]).gather(0, best)[0]
    return QParams(scale, zero_point, trials[0].qmin, trials[0].qmax)


def _along_rows(x: Tensor, qparams: QParams) -> tuple[Tensor, Tensor]:
    scale, zero_point = qparams.scale.to(x.dtype), qparams.zero_point.to(x.dtype)
    if scale.numel() == 1:
        return scale, zero_point
    shape = (-1, *[1] * (x.dim() - 1))
    return scale.view(shape), zero_point.view(shape)
