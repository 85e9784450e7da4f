"""What a layer's solver needs to know of its inputs: unfolded columns, their mean and covariance."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from datafree.affine import fake_quantize
from datafree.records import Layer, Moments, QParams

CHUNK = 2**24  # elements of unfolded input held at once


def positions(
    x_shape: tuple[int, ...], layer: Layer, kernel: tuple[int, int], count: int, seed: int
) -> Int[Tensor, "r 3"]:
    """Up to `count` output positions (image, row, column) drawn at random; all of them where there are no more."""
    size = output_size(x_shape, layer, kernel)
    total = size[0] * size[1] * size[2]
    generator = torch.Generator().manual_seed(seed)
    flat = torch.arange(total) if total <= count else torch.randint(total, (count,), generator=generator)
    return torch.stack(torch.unravel_index(flat, size), 1)


def output_size(x_shape: tuple[int, ...], layer: Layer, kernel: tuple[int, int]) -> tuple[int, int, int]:
    """Images, rows and columns of the layer's output; a linear layer has one position for each of its input vectors."""
    if layer.kind == "linear":
        return int(torch.Size(x_shape[:-1]).numel()), 1, 1
    rows, columns = (
        (x_shape[2 + i] + 2 * layer.padding[i] - layer.dilation[i] * (kernel[i] - 1) - 1) // layer.stride[i] + 1
        for i in (0, 1)
    )
    return x_shape[0], rows, columns


def unfold(x: Tensor, layer: Layer, kernel: tuple[int, int], at: Int[Tensor, "r 3"]) -> Float[Tensor, "r g n"]:
    """The input columns the layer sees at the given output positions, n = taps of one output channel.

    Args:
        x: the layer's input, (N, C_in, H, W) or (..., C_in).
    """
    if layer.kind == "linear":
        return x.reshape(-1, 1, x.shape[-1])[at[:, 0]]
    top, left = layer.padding
    x = F.pad(x, (left, left, top, top)) if top or left else x
    n, c, h, w = x.stride()
    size = output_size((*x.shape[:2], x.shape[2] - 2 * top, x.shape[3] - 2 * left), layer, kernel)
    view = x.as_strided(
        (size[0], x.shape[1], size[1], size[2], *kernel),
        (n, c, h * layer.stride[0], w * layer.stride[1], h * layer.dilation[0], w * layer.dilation[1]),
        x.storage_offset(),
    )
    return view[at[:, 0], :, at[:, 1], at[:, 2]].reshape(len(at), layer.groups, -1)


def gather_moments(
    x: Tensor,
    layer: Layer,
    kernel: tuple[int, int],
    at: Int[Tensor, "r 3"],
    *,
    qparams: QParams | None,
    full: bool,
    student_x: Tensor | None = None,
) -> Moments:
    """Accumulate mean and covariance of the layer's input, as the student will see it, over the given positions.

    Args:
        x: the teacher's input of the layer.
        qparams: grid of the student's input; None = float.
        full: True = the whole covariance (g, n, n), False = its diagonal (g, n).
        student_x: what reaches the layer in the student so far, before it is quantized; None = x.
    """
    mean = cov = rest = shift = torch.zeros(())
    cross = torch.zeros(())
    others = chunks(x if student_x is None else student_x, layer, kernel, at)
    for u, own in zip(chunks(x, layer, kernel, at), others, strict=True):
        us = own if qparams is None else fake_quantize(own, qparams)
        if not shift.dim():
            shift = us.mean(0)  # near the mean, so that float32 products lose nothing
        centred = (us - shift).permute(1, 0, 2)  # (g, r, n)
        mean, rest = mean + u.sum(0).double(), rest + centred.sum(1).double()
        if full and student_x is not None:
            cross = cross + ((u - shift).permute(1, 2, 0) @ centred).double()
        cov = cov + (centred.transpose(1, 2) @ centred if full else centred.square().sum(1)).double()
    mean, rest, cov = mean / len(at), rest / len(at), cov / len(at)
    student_mean = mean if qparams is None and student_x is None else shift + rest
    cross = cross / len(at) - (mean - shift)[:, :, None] * rest[:, None, :] if cross.dim() else None
    cov = cov - (rest[:, :, None] * rest[:, None, :] if full else rest.square())
    if not full:
        cov = cov.clamp(min=0)
    return Moments(mean.float(), student_mean.float(), cov.float(), len(at), None if cross is None else cross.float())


def merged(a: Moments, b: Moments) -> Moments:
    """The moments of all rows of both."""
    num_rows = a.num_rows + b.num_rows
    share = a.num_rows / num_rows
    mean, student_mean = (torch.lerp(y, x, share) for x, y in ((a.mean, b.mean), (a.student_mean, b.student_mean)))
    apart, student_apart = a.mean - b.mean, a.student_mean - b.student_mean
    between = share * (1 - share) * student_apart[:, None, :]
    full = a.cov.dim() == 3
    cov = torch.lerp(b.cov, a.cov, share)
    cov = cov + (student_apart[:, :, None] * between if full else student_apart * between[:, 0])
    cross = None if a.cross is None or b.cross is None else torch.lerp(b.cross, a.cross, share)
    return Moments(mean, student_mean, cov, num_rows, None if cross is None else cross + apart[:, :, None] * between)


def chunks(
    x: Tensor, layer: Layer, kernel: tuple[int, int], at: Int[Tensor, "r 3"]
) -> Iterator[Float[Tensor, "r g n"]]:
    """Unfolded columns in pieces of bounded size."""
    per_row = x.shape[-1] if layer.kind == "linear" else x.shape[1] * kernel[0] * kernel[1]
    for part in at.split(max(1, CHUNK // per_row)):
        yield unfold(x, layer, kernel, part)
