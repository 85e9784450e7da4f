"""One record a kind of layer: all that is particular to it. To everyone else weights are rows, and inputs columns.

A weight is kept as (C_out, C_in/groups, *kernel). An operator that wants it otherwise reads it through moves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, fx

from datafree.graph.annotations import annotate, layer_name, note, operand, shape
from datafree.graph.operators import CONV, LINEAR, argument, aten
from datafree.records import Layer

Move = tuple[Callable[..., Any], tuple[Any, ...]]
"""An operator and its arguments behind the tensor."""


@dataclass(frozen=True)
class LayerType:
    """One kind of layer, y = W x + b.

    name: what `Layer.kind` says.
    rank: dimensions its kernel spans; 0 = linear, which reads vectors, the last dimension of any tensor.
    """

    name: str
    rank: int

    @property
    def channel_axis(self) -> int:
        """Of its input and its output."""
        return 1 if self.rank else -1

    def along_channels(self, values: Tensor) -> Tensor:
        """One value a channel, (C,), as it is broadcast over the layer's output or input."""
        return values.view(1, -1, *[1] * self.rank) if self.rank else values

    def output_side(self, layer: Layer, dim: int, side: int) -> int:
        """Of the output, for that of the input."""
        span = layer.dilation[dim] * (layer.kernel[dim] - 1) + 1
        return (side + 2 * layer.padding[dim] - span) // layer.stride[dim] + 1

    def places(self, layer: Layer, dim: int, at: Int[Tensor, " r"], taps: Int[Tensor, " k"]) -> Int[Tensor, "r k"]:
        """Where the taps of output positions lie along a dimension of the input; outside of it are zeros."""
        return at[:, None] * layer.stride[dim] - layer.padding[dim] + taps * layer.dilation[dim]

    def moves(self, groups: int) -> tuple[Move, ...]:
        """What makes of a weight as it is kept the one the operator wants; and back again, for each undoes itself."""
        return ()

    def meets_borders(self, layer: Layer) -> bool:
        """Whether some output positions are made of fewer taps than others."""
        return any(layer.padding)

    def macs(self, weight_shape: Sequence[int], x_shape: Sequence[int], y_shape: Sequence[int]) -> int:
        """Multiply-adds for tensors of these shapes."""
        return math.prod(weight_shape) * math.prod(y_shape) // y_shape[self.channel_axis]


LAYER_TYPES: dict[object, LayerType] = {CONV: LayerType("conv2d", 2), LINEAR: LayerType("linear", 0)}
PADDED_BY_NAME: dict[object, Any] = {aten.conv2d.padding: CONV}
"""Operators whose padding is "same" or "valid", and those that take it as numbers."""

BY_NAME = {kind.name: kind for kind in LAYER_TYPES.values()}


def type_of(layer: Layer) -> LayerType:
    """The record of a layer's kind."""
    return BY_NAME[layer.kind]


def read_layer(node: fx.Node) -> Layer:
    """The layer that a node computes."""
    kind = LAYER_TYPES[node.target]
    if not kind.rank:
        return Layer(layer_name(node), node.name, kind.name)
    stride, padding, dilation = (_sides(argument(node, a), kind.rank) for a in ("stride", "padding", "dilation"))
    return Layer(
        layer_name(node), node.name, kind.name, shape(operand(node, 1))[2:], stride, padding, dilation, groups_of(node)
    )  # fmt: skip


def _sides(value: int | list[int], rank: int) -> tuple[int, ...]:
    given = [value] if isinstance(value, int) else value
    return tuple(given * rank if len(given) == 1 else given)


def moved(weight: Tensor, moves: Sequence[Move]) -> Tensor:
    """A layer's weight as its operator wants it; or, of one as an operator wants it, as it is kept."""
    for move, arguments in moves:
        weight = move(weight, *arguments)
    return weight


def set_parameters(node: fx.Node, weight: fx.Node, bias: fx.Node) -> None:
    """Let a layer read these nodes: a weight (C_out, C_in/groups, *kernel) and a bias (C_out,)."""
    for move, arguments in LAYER_TYPES[node.target].moves(groups_of(node)):
        laid = move(torch.empty(shape(weight), device="meta"), *arguments)
        with node.graph.inserting_before(node):
            weight = node.graph.call_function(move, (weight, *arguments))
        annotate(weight, shape=tuple(laid.shape))
    node.args = (operand(node), weight, bias, *node.args[3:])


def weight_node(node: fx.Node) -> fx.Node:
    """The node that yields a layer's weight as it is kept."""
    found = operand(node, 1)
    for _ in LAYER_TYPES[node.target].moves(groups_of(node)):
        found = operand(found)
    return found


def as_called(node: fx.Node, weight: Tensor) -> Tensor:
    """A weight, with its elements in the order in which they are kept, as a layer's operator wants it."""
    return moved(weight.view(shape(weight_node(node))), LAYER_TYPES[node.target].moves(groups_of(node)))


def groups_of(node: fx.Node) -> int:
    return argument(node, "groups") if LAYER_TYPES[node.target].rank else 1


def has_rows_in_dimension_1(node: fx.Node) -> bool:
    """Whether what a node gives has a layer's output channels in dimension 1: (N, C, ...)."""
    return bool(note(node).layer) and (LAYER_TYPES[node.target].rank > 0 or len(shape(node)) == 2)


def spans_space(node: fx.Node) -> bool:
    """Whether a node computes a layer whose kernel spans pixels: a convolution."""
    return bool(note(node).layer) and LAYER_TYPES[node.target].rank > 0


def meets_borders(node: fx.Node) -> bool:
    """Whether some outputs of a layer are made of fewer taps than others: what it pads is zeros."""
    return LAYER_TYPES[node.target].meets_borders(read_layer(node))
