"""What a layer's solver needs to know of its inputs: mean and covariance of their columns."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from datafree.execution import add_macs
from datafree.graph import split_rows, unfold
from datafree.quantization import fake_quantize
from datafree.records import Layer, Moments, QParams

MAX_TAPS = 4608  # 3 x 3 x 512; above, H is kept in diagonal blocks: at most n * MAX_TAPS elements a group, not n^2
ROWS = 256  # of H, added at a time
SHIFT_ROWS = 256  # rows spread over all, whose mean is near that of all


def gather_moments(
    x: Tensor,
    layer: Layer,
    at: Int[Tensor, "r d"],
    *,
    qparams: QParams | None,
    full: bool,
    student_x: Tensor | None = None,
) -> Moments:
    """Accumulate mean and covariance of the layer's input, as the student will see it, over the given positions.

    With more than MAX_TAPS taps only the diagonal blocks of the covariance are formed, each as if it were a group.

    Args:
        x: the teacher's input of the layer.
        qparams: grid of the student's input; None = float.
        full: True = the covariance (g * b, m, m) in b = n / m blocks, mostly one; False = its diagonal (g, n).
        student_x: what reaches the layer in the student so far, before it is quantized; None = x.
    """
    as_seen = lambda u: u if qparams is None else fake_quantize(u, qparams)  # noqa: E731
    some = at[:: max(1, math.ceil(len(at) / SHIFT_ROWS))]
    shift = as_seen(unfold(x if student_x is None else student_x, layer, some)).mean(0)  # near the mean: exact
    groups, taps = shift.shape
    size = block_size(taps, layer.kernel_size) if full else taps
    blocks = groups * taps // size
    mean, rest = torch.zeros(groups, taps).double(), torch.zeros(blocks, size).double()
    cov = torch.zeros(blocks, *[size] * (2 if full else 1)).double()
    cross = torch.zeros_like(cov) if full and student_x is not None else None
    scatter = torch.zeros(blocks).double()
    grouped = lambda u: (u - shift).view(-1, blocks, size).permute(1, 0, 2)  # noqa: E731
    for part in split_rows(x, layer, at):
        u = unfold(x, layer, part)
        mean += u.sum(0)
        centred = grouped(as_seen(u if student_x is None else unfold(student_x, layer, part)))  # (g * b, r, m)
        rest += centred.sum(1)
        if cross is not None:
            _add(cross, grouped(u).transpose(1, 2) @ centred)
        del u  # of a wide layer one piece is large
        add_macs(centred.numel() * (size * (1 + (cross is not None)) if full else 1))
        if full:
            _add(cov, centred.transpose(1, 2) @ centred)
            scatter += _scatter(centred.square_())
        else:
            cov += centred.square_().sum(1)
        del centred
    for total in (mean, rest, cov, scatter):
        total /= len(at)
    student_mean = mean if qparams is None and student_x is None else shift + rest.view_as(shift)
    if cross is not None:
        cross = cross.div_(len(at)).baddbmm_((mean - shift).view_as(rest)[:, :, None], rest[:, None, :], alpha=-1)
    if not full:
        cov = (cov - rest.square()).clamp(min=0)
        return Moments(mean.float(), student_mean.float(), cov.float(), len(at))
    cov = cov.baddbmm_(rest[:, :, None], rest[:, None, :], alpha=-1).float()  # of a wide layer float64 goes at once
    cross = None if cross is None else cross.float()
    return Moments(mean.float(), student_mean.float(), cov, len(at), cross, scatter)


def _add(total: Float[Tensor, "b m m"], more: Float[Tensor, "b m m"]) -> None:
    """`total += more`, rows by rows: torch makes float64 of all that it adds first, and H is large."""
    for own, part in zip(total.split(ROWS, 1), more.split(ROWS, 1), strict=True):
        own += part


def _scatter(square: Float[Tensor, "b r m"]) -> Float[Tensor, " b"]:
    """Sum over rows and taps i != j of d_i^2 d_j^2, from d^2, whose memory is used."""
    return (square.sum(2).square() - square.square_().sum(2)).sum(1)


def block_size(taps: int, kernel_size: int = 1) -> int:
    """Taps of each of the fewest equal blocks that hold at most MAX_TAPS and whole input channels."""
    channels = taps // kernel_size
    counts = itertools.count(math.ceil(taps / MAX_TAPS))
    return next(taps // num for num in counts if channels % num == 0 or num > channels)


def merged(a: Moments, b: Moments) -> Moments:
    """The moments of all rows of both; `scatter` is about the mean of each."""
    num_rows = a.num_rows + b.num_rows
    share = a.num_rows / num_rows
    apart = (a.mean - b.mean).view(a.cov.shape[:2])
    student_apart = (a.student_mean - b.student_mean).view(a.cov.shape[:2])
    between = share * (1 - share) * student_apart[:, None, :]
    cov, cross = torch.lerp(b.cov, a.cov, share), _between(a.cross, b.cross, share)
    cov = cov + (student_apart[:, :, None] * between if cov.dim() == 3 else student_apart * between[:, 0])
    cross = None if cross is None else cross + apart[:, :, None] * between
    mean, student_mean = torch.lerp(b.mean, a.mean, share), torch.lerp(b.student_mean, a.student_mean, share)
    return Moments(mean, student_mean, cov, num_rows, cross, _between(a.scatter, b.scatter, share))


def _between(a: Tensor | None, b: Tensor | None, share: float) -> Tensor | None:
    return None if a is None or b is None else torch.lerp(b, a, share)


def shrunk(moments: Moments) -> Moments:
    """Move H towards its own diagonal, as far as the noise of an estimate from so few rows asks for.

        H' = (1 - a) H + a diag(H),   a = min(1, sum Var(H_ij) / sum H_ij^2) over i != j

    Schafer & Strimmer 2005, target D; rows count as independent. C = Cov[u, u'] moves by the same a (ours): inputs that
    are the same keep C = H. What has no `scatter`, because it is exact or shrunk, stays as it is.
    """
    if moments.scatter is None:
        return moments
    diagonal = moments.cov.diagonal(dim1=1, dim2=2)
    power = _power(moments.cov) - diagonal.double().square().sum(1)
    noise = (moments.scatter - power).clamp(min=0) / max(1, moments.num_rows - 1)
    keep = 1 - (noise / power.clamp(min=1e-300)).clamp(max=1).float()[:, None, None]
    cross = None if moments.cross is None else _off_diagonal_times(moments.cross, keep)
    return replace(moments, cov=_off_diagonal_times(moments.cov, keep), cross=cross, scatter=None)


def _power(h: Float[Tensor, "b m m"]) -> Float[Tensor, " b"]:
    """Sum of squares, float64; a few rows are squared at a time, for H is large."""
    square = torch.empty(h.shape, dtype=torch.float64)
    for own, part in zip(square.split(ROWS, 1), h.split(ROWS, 1), strict=True):
        own.copy_(part.square())
    return square.sum((1, 2))


def _off_diagonal_times(h: Float[Tensor, "b m m"], factor: Float[Tensor, "b 1 1"]) -> Float[Tensor, "b m m"]:
    found = h * factor
    found.diagonal(dim1=1, dim2=2).copy_(h.diagonal(dim1=1, dim2=2))
    return found
