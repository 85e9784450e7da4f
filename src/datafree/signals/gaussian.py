"""The paper's signal: independent Gaussians at BatchNorm outputs, and their moments behind what only clips."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, fx

from datafree.graph import argument, clip_bounds, operand, operator_of, shape, taps_inside
from datafree.records import ChannelStats, Layer, Moments, Stats


def draw(stats: ChannelStats, shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "n c ..."]:
    """Draw every channel and pixel independently from N(mean, std^2) (paper, eq. 2)."""
    view = (1, -1, *[1] * (len(shape) - 2))
    return torch.randn(shape, generator=generator) * stats.std.view(view) + stats.mean.view(view)


def is_passed_over(node: fx.Node) -> bool:
    """Pooling and resampling: behind them the paper uses the statistics before them."""
    over = operator_of(node).over
    if over == "dims":
        dims, rank = argument(node, "dim"), len(shape(operand(node)))
        return rank > 2 and all(d % rank >= 2 for d in (dims if isinstance(dims, list | tuple) else [dims]))
    return over == "space"


def passed_over(node: fx.Node, x: Float[Tensor, "n c ..."], generator: torch.Generator) -> Float[Tensor, "n c ..."]:
    """What a pooling node yields where pooling is ignored: as many pixels of its input, picked at random.

    Pixels are independent, so these are draws from the statistics before it at the shape behind it (the paper).
    """
    wanted = (*x.shape[:2], *shape(node)[2:])
    count = math.prod(wanted[2:])
    order = torch.randperm(x[0, 0].numel(), generator=generator)
    return x.flatten(2)[:, :, order.repeat(-(-count // len(order)))[:count]].reshape(wanted)


def clipped_moments(stats: ChannelStats, low: float, high: float) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Mean and variance of clamp(x, low, high), x ~ N(mean, std^2).

    With a, b = (low - mean) / std, (high - mean) / std, phi and Phi the normal density and distribution:
        E[y]   = low Phi(a) + high (1 - Phi(b)) + mean (Phi(b) - Phi(a)) + std (phi(a) - phi(b))
        E[y^2] = low^2 Phi(a) + high^2 (1 - Phi(b)) + (mean^2 + std^2) (Phi(b) - Phi(a))
                 + 2 mean std (phi(a) - phi(b)) + std^2 (a phi(a) - b phi(b))
    """
    mean, std = stats.mean.double(), stats.std.double().clamp(min=1e-12)
    first = torch.zeros_like(mean)
    second = torch.zeros_like(mean)
    density, mass, tail = [], [], []
    for is_low, bound in ((True, low), (False, high)):
        finite = math.isfinite(bound)
        z = (bound - mean) / std if finite else torch.zeros_like(mean)
        pdf = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi) if finite else torch.zeros_like(mean)
        cdf = 0.5 * torch.erfc(-z / math.sqrt(2)) if finite else torch.full_like(mean, float(bound > 0))
        outside = cdf if is_low else 1 - cdf
        if finite:
            first, second = first + bound * outside, second + bound**2 * outside
        density.append(pdf)
        mass.append(cdf)
        tail.append(z * pdf)
    inside, slope = mass[1] - mass[0], density[0] - density[1]
    first = first + mean * inside + std * slope
    second = second + (mean**2 + std**2) * inside + 2 * mean * std * slope + std**2 * (tail[0] - tail[1])
    return first.float(), (second - first**2).clamp(min=0).float()


def closed_form(layer: Layer, node: fx.Node, stats: Stats, sides: Sequence[int]) -> Moments | None:
    """Moments of a layer's inputs without any sampling, where only clipping lies between BatchNorm and the layer.

    Pixels and channels are independent, so H is diagonal but for what zero padding adds: with p_ij the share of output
    positions at which taps i and j both lie inside the image, m and v the clipped mean and variance of a channel,

        mu_i = p_i m,   H_ij = (p_ij - p_i p_j) m m' + [same tap and channel] p_i v                     (ours)

    Args:
        node: the graph node of the layer's input.
        sides: height and width of that input.
    """
    clipped = _clipped_source(node, stats)
    if clipped is None or len(shape(node)) != 2 + len(layer.kernel):
        return None
    mean, variance = (t.view(layer.groups, -1) for t in clipped)  # (g, C_in/g)
    inside = taps_inside(layer, sides)  # (positions, taps)
    share = inside.mean(0)
    both = inside.T @ inside / len(inside)
    excess = both - torch.outer(share, share)
    mu = (mean[:, :, None] * share).flatten(1)
    h = torch.einsum("gc,gd,st->gcsdt", mean, mean, excess).flatten(3).flatten(1, 2)
    h = h + torch.diag_embed((variance[:, :, None] * share).flatten(1))
    return Moments(mu, mu, h, num_rows=len(inside))


def _clipped_source(node: fx.Node, stats: Stats) -> tuple[Tensor, Tensor] | None:
    low, high = -math.inf, math.inf
    while node.name not in stats:
        if (ends := clip_bounds(node)) is None:
            return None
        low, high = (min(max(end, ends[0]), ends[1]) for end in (low, high))
        node = operand(node)
    return clipped_moments(stats[node.name], low, high)
