"""What may stand between a layer and its quantize node at no cost: clipping, and products with constants."""

from __future__ import annotations

from torch import Tensor, fx

from datafree.graph import view as g
from datafree.graph.annotations import operand, shape
from datafree.graph.operators import aten, operator_of


def clip_bounds(node: fx.Node) -> tuple[float, float] | None:
    """The ends an activation clips to, where clipping is all it does."""
    clips = operator_of(node).clips
    return clips(node) if clips else None


def channel_multiplier(graph: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """The constant (C, 1, ...), positive, that a node multiplies dimension 1 with; None where it does not."""
    if node.target is not aten.mul.Tensor or getattr(node.args[1], "op", "") != "get_attr":
        return None
    value, sides = g.tensor_of(graph, operand(node, 1)), shape(node)
    channels = sides[1] if len(sides) > 1 else 0
    along = tuple(value.shape[-len(sides) + 1 :]) == (channels, *[1] * (len(sides) - 2))
    return value if along and value.numel() == channels and bool((value > 0).all()) else None
