"""One record a kind of layer: all that is particular to it. To everyone else weights are rows, and inputs columns.

A weight is kept as (C_out, C_in/groups, *kernel).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor, fx

from datafree.graph.annotations import layer_name, note, operand, shape
from datafree.graph.operators import CONV, LINEAR, argument
from datafree.records import Layer


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

    def meets_borders(self, layer: Layer) -> bool:
        """Whether some output positions are made of fewer taps than others."""
        return any(layer.padding)

    def macs(self, weight_shape: Sequence[int], x_shape: Sequence[int], y_shape: Sequence[int]) -> int:
        """Multiply-adds for tensors of these shapes."""
        return math.prod(weight_shape) * math.prod(y_shape) // y_shape[self.channel_axis]


LAYER_TYPES: dict[object, LayerType] = {CONV: LayerType("conv2d", 2), LINEAR: LayerType("linear", 0)}
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
        layer_name(node), node.name, kind.name, shape(operand(node, 1))[2:], stride, padding, dilation,
        argument(node, "groups"),
    )  # fmt: skip


def _sides(value: int | list[int], rank: int) -> tuple[int, ...]:
    given = [value] if isinstance(value, int) else value
    return tuple(given * rank if len(given) == 1 else given)


def has_rows_in_dimension_1(node: fx.Node) -> bool:
    """Whether what a node gives has a layer's output channels in dimension 1: (N, C, ...)."""
    return bool(note(node).layer) and (LAYER_TYPES[node.target].rank > 0 or len(shape(node)) == 2)


def spans_space(node: fx.Node) -> bool:
    """Whether a node computes a layer whose kernel spans pixels: a convolution."""
    return bool(note(node).layer) and LAYER_TYPES[node.target].rank > 0


def meets_borders(node: fx.Node) -> bool:
    """Whether some outputs of a layer are made of fewer taps than others: what it pads is zeros."""
    return LAYER_TYPES[node.target].meets_borders(read_layer(node))
