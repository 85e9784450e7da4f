"""Which channels of which tensors never change: the graph executed on "not known" (ours).

The network's input is NaN, and NaN goes wherever the input goes. What is a number all the same is a constant, borders
of padding included, and no operator needs a rule of its own. Only layers do: a zero weight stops what is not known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, fx

from datafree import graph as g
from datafree.graph import UNKNOWN, operator_of
from datafree.records import Stats

FEW = 64  # positions of a channel that are looked at first
EXACT = 1e-5  # of the output's range, what constants may cost
STILL = (1e-5, 1e-7, 0.0)  # of a tensor's largest deviation; a channel below is constant


@dataclass
class Constants:
    """What is the same whatever the network sees.

    inputs: by layer, its input channels (C_in,): the constant that is there at every position; NaN = none.
    zeros: tensors that are zero everywhere.
    """

    inputs: dict[str, Float[Tensor, " c"]] = field(default_factory=dict)
    zeros: set[fx.Node] = field(default_factory=set)


def still_channels(teacher: fx.GraphModule, stats: Stats) -> dict[str, Bool[Tensor, " c"]]:
    """Channels that BatchNorm remembers without a deviation, by node.

    Of the shares in `STILL`, the first is taken at which the network's output does not move by more than `EXACT` of its
    range when these channels deviate as much as is remembered. The network's input is noise.
    """
    for share in STILL:
        still = {name: s.std <= share * s.std.max() for name, s in stats.items()}
        still = {name: channels for name, channels in still.items() if channels.any()}
        if not still or _moves(teacher, stats, still) <= EXACT:
            return still
    return {}


def find_constants(teacher: fx.GraphModule, stats: Stats, still: dict[str, Bool[Tensor, " c"]]) -> Constants:
    """Execute the graph on an input that is not known.

    Args:
        still: channels that have the mean of their statistics, by node.
    """
    found = Constants()
    inputs = tuple(torch.full(g.shape(node), math.nan) for node in g.placeholders(teacher))  # two: squeeze() keeps them
    for node, values in g.walk(teacher, inputs):
        if node.op == "placeholder":
            continue
        if g.note(node).layer:
            x = values[g.operand(node)]
            found.inputs[g.layer_name(node)] = _same_everywhere(x, g.type_of(g.read_layer(node)).channel_axis)
            values[node] = _layer(teacher, node, x)
        else:
            values[node] = _call(node, values)
        if node.name in still:
            values[node] = _with_means(values[node], _along(stats[node.name].mean, values[node]), still[node.name])
        if isinstance(values[node], Tensor) and bool((values[node] == 0).all()):
            found.zeros.add(node)
    return found


def _layer(teacher: fx.GraphModule, node: fx.Node, x: Tensor) -> Tensor:
    """A layer's output, NaN where a weight that is not zero meets what is not known."""
    layer = g.read_layer(node)
    weight, bias = g.weight(teacher, layer), g.bias(teacher, layer)
    y = g.run_layer(node, torch.where(x.isnan(), 0, x), weight, bias)
    meets = g.run_layer(node, x.isnan().float(), (weight != 0).float(), torch.zeros_like(bias))
    return torch.where(meets > 0.5, math.nan, y)


def _call(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """An operator that is not in the table may make numbers of NaN: what it yields is not known."""
    value = g.execute(node, values)
    if operator_of(node) is UNKNOWN and isinstance(value, Tensor) and value.is_floating_point():
        return torch.full_like(value, math.nan)
    return value


def _with_means(value: Tensor, mean: Tensor, still: Bool[Tensor, " c"]) -> Tensor:
    """The tensor with means in place of still channels (dimension 1), unless they are constants already."""
    unknown = value.isnan().transpose(0, 1).flatten(1).any(1)
    return torch.where(_along(still & unknown, value), mean, value)


def _along(channels: Tensor, value: Tensor) -> Tensor:
    return channels.view(1, -1, *[1] * (value.dim() - 2))


def _same_everywhere(x: Tensor, axis: int) -> Float[Tensor, " c"]:
    """The value of every channel, NaN where it differs from place to place or is not known."""
    rows = x.movedim(axis, 0).flatten(1)
    found = torch.full_like(rows[:, 0], math.nan)
    likely = torch.isclose(rows[:, :FEW], rows[:, :1], rtol=1e-5, atol=0).all(1).nonzero()[:, 0]  # most are told by few
    same = likely[torch.isclose(rows[likely], rows[likely, :1], rtol=1e-5, atol=0).all(1)]
    found[same] = rows[same, 0]
    return found


def _moves(teacher: fx.GraphModule, stats: Stats, still: dict[str, Bool[Tensor, " c"]]) -> float:
    """How far still channels move the network's output, as a share of its range."""
    generator = torch.Generator().manual_seed(0)
    inputs = tuple(torch.randn(g.shape(node), generator=generator) for node in g.placeholders(teacher))
    ends = []
    for size in (0.0, 1.0):
        values: dict[fx.Node, Any] = {}
        for node, values in g.walk(teacher, inputs):
            if node.name in still:
                value, known = g.execute(node, values), stats[node.name]
                shaken = size * torch.randn(value.shape, generator=generator) * _along(known.std, value)
                steady = _along(known.mean, value) + shaken
                values[node] = torch.where(_along(still[node.name], value), steady, value)
        ends.append([values[node].flatten() for node in g.outputs(teacher)])
    rest, moved = (torch.cat(end) for end in ends)
    return float((moved - rest).abs().max() / (rest.max() - rest.min()).clamp(min=1e-30))
