"""What may stand between a layer and its quantize node at no cost: clipping, and products with constants."""

from __future__ import annotations

from torch import Tensor, fx

from datafree.graph import view as g
from datafree.graph.operators import CONV, aten, operator_of


def clip_bounds(node: fx.Node) -> tuple[float, float] | None:
    """The ends an activation clips to, where clipping is all it does."""
    clips = operator_of(node).clips
    return clips(node) if clips else None


def channel_multiplier(graph: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """The constant (C, 1, ...), positive, that a node multiplies dimension 1 with; None where it does not."""
    if node.target is not aten.mul.Tensor or getattr(node.args[1], "op", "") != "get_attr":
        return None
    value, shape = g.get_tensor(graph, str(node.args[1].target)), g.shape(node)  # type: ignore[union-attr]
    channels = shape[1] if len(shape) > 1 else 0
    along = tuple(value.shape[-len(shape) + 1 :]) == (channels, *[1] * (len(shape) - 2))
    return value if along and value.numel() == channels and bool((value > 0).all()) else None


def has_rows_in_dimension_1(layer: fx.Node) -> bool:
    """Whether what a node gives has a layer's output channels in dimension 1: (N, C, H, W) or (N, C)."""
    return bool(layer.meta.get("layer")) and (layer.target is CONV or len(g.shape(layer)) == 2)
