"""What stands between a layer and its quantize node, and where to write it instead, so that runtimes fuse the two."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import fx

from datafree import graph as g
from datafree.graph import aten
from datafree.recipe import TARGETS, USUAL, Target
from datafree.solve import quantized_at
from datafree.student import DEQUANTIZE, DEQUANTIZE_ROWS, QUANTIZE

AFFINE = (
    aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar, aten.add.Tensor, aten.add.Scalar,
    aten.sub.Tensor, aten.sub.Scalar, aten.batch_norm.default,
)  # fmt: skip
Bounds = tuple[np.ndarray | float, np.ndarray | float]


@dataclass(frozen=True)
class Fusion:
    """Nodes that are left out of the file, and what takes their place.

    bounds: by node left out, the ends its quantize nodes clip to instead, as integers.
    factors: by dequantize node of a layer's weight or bias, what its scale is multiplied with (C_out,).
    pads: zero paddings between integers, written on the integers.
    float_parameters: dequantize nodes of weights and biases of layers for which runtimes have no integer kernel.
    """

    bounds: dict[fx.Node, Bounds] = field(default_factory=dict)
    factors: dict[fx.Node, np.ndarray] = field(default_factory=dict)
    pads: set[fx.Node] = field(default_factory=set)
    float_parameters: set[fx.Node] = field(default_factory=set)


def fuse(graph: fx.GraphModule, target: Target = TARGETS[USUAL]) -> Fusion:
    """Find activations that only clip, and multiplies by positive constants, in front of nothing but quantize nodes.

    A multiply by v behind a layer moves into the layer's scales (its integers stay), through an activation too, whose
    ends are then v times as far: v relu6(W x) = clip(v W x, 0, 6 v). Where a runtime takes no operators on integers,
    activations stay in front of their quantize nodes.
    """
    fusion = Fusion()
    for node in graph.graph.nodes:
        if node.op != "call_function" or not node.users or any(u.target is not QUANTIZE for u in node.users):
            continue
        bounds = g.clip_bounds(node)
        if not target.integer_operators and (bounds is not None or node.target is aten.constant_pad_nd.default):
            continue
        if node.target is aten.constant_pad_nd.default and all(on_grid(u) for u in node.users):
            fusion.pads.add(node)
        elif bounds is not None:
            fusion.bounds[node] = bounds
        elif (vector := g.channel_multiplier(graph, node)) is not None:
            _move_into_scales(fusion, node, vector.numpy(), integer_operators=target.integer_operators)
    for node in graph.graph.nodes:
        if target.tuned and g.note(node).layer and not _has_integer_kernel(node):
            fusion.float_parameters.update(_stored_as_integers(node))
    return fusion


def _has_integer_kernel(layer: fx.Node) -> bool:
    """Whether a layer reads integers, and is linear or gives integers in the end.

    Some of these run in float all the same. But ONNX Runtime would round floats in their place to grids of its own
    (its WeightBiasQuantization).
    """
    linear = layer.target is aten.linear.default
    return g.operand(layer).target is DEQUANTIZE and (linear or _gives_integers(layer))


def _gives_integers(node: fx.Node) -> bool:
    """Whether a quantize node reads a value, if it is clipped, multiplied or shifted by constants on the way there."""
    return any(
        u.target is QUANTIZE or ((g.clip_bounds(u) is not None or _multiplies_or_shifts(u)) and _gives_integers(u))
        for u in node.users
    )


def _multiplies_or_shifts(node: fx.Node) -> bool:
    return node.target in AFFINE and sum(n.op != "get_attr" for n in node.all_input_nodes) == 1


def _stored_as_integers(layer: fx.Node) -> list[fx.Node]:
    """Dequantize nodes of a layer's weight and bias."""
    parameters = [g.weight_node(layer), *(node for node in layer.args[2:3] if isinstance(node, fx.Node))]
    return [node for node in parameters if node.target in (DEQUANTIZE, DEQUANTIZE_ROWS)]


def on_grid(node: fx.Node) -> bool:
    """Whether a quantize node reads values that were on its grid already and have only been moved since."""
    source = quantized_at(g.operand(node))
    return source.target is DEQUANTIZE and source.args[1:5] == node.args[1:5]


def _move_into_scales(fusion: Fusion, multiply: fx.Node, vector: np.ndarray, *, integer_operators: bool) -> None:
    before = g.operand(multiply)
    bounds = g.clip_bounds(before)
    layer = before if bounds is None else g.operand(before)
    if bounds is not None and not integer_operators:
        return
    if not g.has_rows_in_dimension_1(layer) or len(layer.users) > 1 or len(before.users) > 1:
        return
    parameters = _stored_as_integers(layer)
    if len(parameters) < 2:
        return
    if bounds is not None:
        fusion.bounds[before] = bounds
    low, high = bounds or (-np.inf, np.inf)
    fusion.bounds[multiply] = (low * vector, high * vector)
    fusion.factors.update(dict.fromkeys(parameters, vector.flatten()))
