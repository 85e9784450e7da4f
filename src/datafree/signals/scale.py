"""The scale of the network's input, read off the first BatchNorm: the most common mistake of a user is a wrong one."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, fx

from datafree import graph as g
from datafree.records import ChannelStats, InputRange, Stats
from datafree.signals.source import batch_statistics

SMALLEST, LARGEST = 1e-4, 1e5  # deviations that images may have


def infer_input_range(teacher: fx.GraphModule, index: int, unit: Float[Tensor, "n c ..."], stats: Stats) -> InputRange:
    """Choose the mean and standard deviation of the input that best explain the first layer's statistics (ours).

    The first layer is linear in its input x = std unit + mean: its output has mean `b + sum(W) mean` and standard
    deviation `std * std(W unit)` for probes `unit`. Both are fitted over the layer's channels: the standard deviation
    by the median of the ratio, the mean of each input channel by least squares weighted with 1 / std, drawn to zero.

    Returns:
        One mean for each channel and one std; mean 0 and std 1 where no BatchNorm follows the first layer, or where
        it and the layer tell of no scale that images have.
    """
    first = _first_layer(g.placeholders(teacher)[index], stats)
    if first is None:
        return InputRange((0.0,), (1.0,), "assumed, no BatchNorm follows the first layer")
    node, remembered = first
    weight, bias = (g.get_tensor(teacher, f"{g.layer_name(node)}.{p}") for p in ("weight", "bias"))
    response = ChannelStats(*batch_statistics(g.run_layer(node, unit, weight, bias)))
    alive = (remembered.std > 1e-3 * remembered.std.max()) & (response.std > 1e-3 * response.std.max())
    std = float((remembered.std / response.std.clamp(min=1e-12))[alive].median())
    if not SMALLEST <= std <= LARGEST:  # NaN too: no channel of the layer, or of the BatchNorm, is alive
        return InputRange((0.0,), (1.0,), "assumed, the first BatchNorm and the layer in front tell nothing of it")
    gain = weight.flatten(2).sum(2)[alive].double() / remembered.std[alive, None].double()  # (C_out, C_in)
    offset = ((remembered.mean - bias)[alive] / remembered.std[alive]).double()
    ridge = 0.1 / std**2  # a prior: the mean is of the size of a few standard deviations
    mean = torch.linalg.solve(gain.T @ gain + ridge * torch.eye(gain.shape[1]).double(), gain.T @ offset)
    return InputRange(tuple(round(float(m), 4) for m in mean), (round(std, 4),), "inferred from the first BatchNorm")


def _first_layer(node: fx.Node, stats: Stats) -> tuple[fx.Node, ChannelStats] | None:
    """The layer that reads this (possibly padded) input, if a BatchNorm was folded into it."""
    while len(users := [u for u in node.users if g.note(u).size is None]) == 1 and not g.note(node).layer:
        node = users[0]
        if g.operator_of(node).channels != "pads" and not g.note(node).layer:
            return None
    return (node, stats[node.name]) if node.name in stats and g.spans_space(node) else None


def in_range(x: Float[Tensor, "n c ..."], chosen: InputRange) -> Float[Tensor, "n c ..."]:
    """Unit-variance images in the range the network expects."""
    view = (1, -1, *[1] * (x.dim() - 2))
    mean, std = (torch.tensor(v, device=x.device).expand(x.shape[1]).view(view) for v in (chosen.mean, chosen.std))
    return x * std + mean
