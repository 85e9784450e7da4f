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

NOWHERE = -(2**31)  # outside of every image

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

    def moves(self, weight_shape: Sequence[int], groups: int) -> tuple[Move, ...]:
        """What makes of a weight as it is kept the one the operator wants, and the other way round."""
        return ()

    def meets_borders(self, layer: Layer) -> bool:
        """Whether some output positions are made of fewer taps than others."""
        return any(layer.padding)

    def macs(self, weight_shape: Sequence[int], x_shape: Sequence[int], y_shape: Sequence[int]) -> int:
        """Multiply-adds for tensors of these shapes."""
        return math.prod(weight_shape) * math.prod(y_shape) // y_shape[self.channel_axis]


@dataclass(frozen=True)
class Transposed(LayerType):
    """A transposed convolution: every input pixel puts down the kernel, `stride` pixels apart.

    Seen from an output position, tap k comes from the input pixel i with i * stride - padding + k * dilation there,
    where there is one. Its operator wants the weight as (C_in, C_out/groups, *kernel).
    """

    def output_side(self, layer: Layer, dim: int, side: int) -> int:
        span = layer.dilation[dim] * (layer.kernel[dim] - 1) + 1
        return (side - 1) * layer.stride[dim] - 2 * layer.padding[dim] + span + layer.output_padding[dim]

    def places(self, layer: Layer, dim: int, at: Int[Tensor, " r"], taps: Int[Tensor, " k"]) -> Int[Tensor, "r k"]:
        reached = at[:, None] + layer.padding[dim] - taps * layer.dilation[dim]
        return torch.where(reached % layer.stride[dim] == 0, reached // layer.stride[dim], NOWHERE)

    def moves(self, weight_shape: Sequence[int], groups: int) -> tuple[Move, ...]:
        if tuple(weight_shape[:2]) == (groups, 1):  # depthwise: both are the same
            return ()
        if groups == 1:
            return ((aten.transpose.int, (0, 1)),)
        return (
            (aten.unflatten.int, (0, [groups, -1])), (aten.transpose.int, (1, 2)), (aten.flatten.using_ints, (0, 1))
        )  # fmt: skip

    def meets_borders(self, layer: Layer) -> bool:
        return True

    def macs(self, weight_shape: Sequence[int], x_shape: Sequence[int], y_shape: Sequence[int]) -> int:
        return math.prod(weight_shape) * math.prod(x_shape) // x_shape[self.channel_axis]


LAYER_TYPES: dict[object, LayerType] = {
    CONV: LayerType("conv2d", 2),
    LINEAR: LayerType("linear", 0),
    aten.conv1d.default: LayerType("conv1d", 1),
    aten.conv_transpose1d.default: Transposed("conv_transpose1d", 1),
    aten.conv_transpose2d.input: Transposed("conv_transpose2d", 2),
}
PADDED_BY_NAME: dict[object, Any] = {aten.conv2d.padding: CONV, aten.conv1d.padding: aten.conv1d.default}
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
    settings = ["stride", "padding", "dilation", *["output_padding"] * isinstance(kind, Transposed)]
    stride, padding, dilation, *more = (_sides(argument(node, name), kind.rank) for name in settings)
    kernel = shape(operand(node, 1))[2:]
    return Layer(layer_name(node), node.name, kind.name, kernel, stride, padding, dilation, groups_of(node), *more)


def _sides(value: int | list[int], rank: int) -> tuple[int, ...]:
    given = [value] if isinstance(value, int) else value
    return tuple(given * rank if len(given) == 1 else given)


def _moved(weight: Tensor, moves: Sequence[Move]) -> Tensor:
    for move, arguments in moves:
        weight = move(weight, *arguments)
    return weight


def set_parameters(node: fx.Node, weight: fx.Node, bias: fx.Node) -> None:
    """Let a layer read these nodes: a weight (C_out, C_in/groups, *kernel) and a bias (C_out,)."""
    for move, arguments in _moves(node, weight):
        laid = move(torch.empty(shape(weight), device="meta"), *arguments)
        with node.graph.inserting_before(node):
            weight = node.graph.call_function(move, (weight, *arguments))
        annotate(weight, shape=tuple(laid.shape))
    node.args = (operand(node), weight, bias, *node.args[3:])


def weight_node(node: fx.Node) -> fx.Node:
    """The node that yields a layer's weight as it is kept."""
    found = operand(node, 1)
    for _ in _moves(node, found):
        found = operand(found)
    return found


def as_called(node: fx.Node, weight: Tensor) -> Tensor:
    """A weight, with its elements in the order in which they are kept, as a layer's operator wants it."""
    kept = weight_node(node)
    return _moved(weight.view(shape(kept)), _moves(node, kept))


def as_kept(node: fx.Node, weight: Tensor) -> Tensor:
    """A weight as a layer's operator wants it, the way it is kept."""
    return _moved(weight, LAYER_TYPES[node.target].moves(weight.shape, groups_of(node)))


def _moves(node: fx.Node, weight: fx.Node) -> tuple[Move, ...]:
    return LAYER_TYPES[node.target].moves(shape(weight), groups_of(node))


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
