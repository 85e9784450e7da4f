"""Nodes of a file that are one layer: what is multiplied and added per channel behind it goes into its constants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from datafree.models.onnx_file.records import Node

Constants = dict[str, np.ndarray]


def joined_layers(nodes: Sequence[Node], constants: Constants, outputs: Sequence[str]) -> tuple[Node, ...]:
    """Let a layer take the Add, Sub, Mul and Div of constants behind it, exactly.

    (W x + b) a + c = (a W) x + (a b + c), per channel    (ours; as BatchNorm is folded)

    Only where nothing else reads what is between. A matrix product becomes a MatMul with a bias as its third input.

    Args:
        nodes: in the order in which they run.
        constants: weights that are scaled are replaced, new biases added.
        outputs: of the network.
    """
    readers = Counter([*(name for node in nodes for name in node.inputs), *outputs])
    layers: dict[str, Node] = {}  # by the output they now have
    for node in nodes:
        layer = next((layers[name] for name in node.inputs if name in layers and readers[name] == 1), None)
        found = _joined(layer, node, constants, readers) if layer else None
        if layer and found:
            del layers[layer.outputs[0]]
            layers[found.outputs[0]] = found
        elif _is_open(node, constants):
            layers[node.outputs[0]] = node
    gone = {name for layer in layers.values() for name in layer.covers}
    return tuple(layers.get(node.outputs[0], node) for node in nodes if not gone & {*node.outputs})


def _is_open(node: Node, constants: Constants) -> bool:
    """A layer whose weights and bias are constants, and whose weights have the output's channels on one axis."""
    if node.operator not in ("Conv", "ConvTranspose", "MatMul") or len(node.inputs) < 2:
        return False
    weight, *bias = (constants.get(name) for name in node.inputs[1:] if name)
    if weight is None or any(b is None for b in bias):
        return False
    is_split = node.operator == "ConvTranspose" and node.attributes.get("group", 1) > 1
    return weight.dtype == np.float32 and not is_split and (node.operator != "MatMul" or weight.ndim == 2)


def _joined(layer: Node, node: Node, constants: Constants, readers: Counter[str]) -> Node | None:
    """The layer with what `node` does to its output; None where that is not per channel, or its weights are shared."""
    weight = constants[layer.inputs[1]].astype(np.float64)
    change = _change(layer, node, constants)
    if change is None:
        return None
    factor, shift = change
    if (factor != 1).any():
        if readers[layer.inputs[1]] > 1:
            return None
        sides = [1] * weight.ndim
        sides[_axis(layer)] = -1
        constants[layer.inputs[1]] = (weight * factor.reshape(sides)).astype(np.float32)
    bias = constants[layer.inputs[2]].astype(np.float64) if any(layer.inputs[2:]) else 0.0
    total = np.broadcast_to(bias * factor + shift, (weight.shape[_axis(layer)],))
    name = f"{node.outputs[0]}::bias"
    constants[name] = total.astype(np.float32)
    inputs = (*layer.inputs[:2], name)
    return replace(layer, inputs=inputs, outputs=node.outputs, covers=(*layer.covers, *layer.outputs))


def _change(layer: Node, node: Node, constants: Constants) -> tuple[np.ndarray, np.ndarray] | None:
    """What a node does to a layer's output, as a factor and a shift per channel (or for all); None for all else."""
    if node.operator not in ("Add", "Sub", "Mul", "Div") or len(node.inputs) != 2:
        return None
    is_first = node.inputs[0] == layer.outputs[0]
    value = constants.get(node.inputs[int(is_first)])
    vector = None if value is None else _per_channel(value, layer, constants[layer.inputs[1]])
    if vector is None or (node.operator == "Div" and (not is_first or not vector.all())):
        return None
    one, zero = np.ones(1), np.zeros(1)
    if node.operator == "Sub":
        return (one, -vector) if is_first else (-one, vector)
    return {"Add": (one, vector), "Mul": (vector, zero), "Div": (1 / np.where(vector, vector, 1), zero)}[node.operator]


def _per_channel(value: np.ndarray, layer: Node, weight: np.ndarray) -> np.ndarray | None:
    """A constant as one number for all or one a channel of the layer's output; None where it is neither."""
    rank, behind = (2, 0) if layer.operator == "MatMul" else (weight.ndim, weight.ndim - 2)
    if value.dtype != np.float32 or value.ndim > rank:
        return None
    is_vector = value.ndim > behind and value.shape[value.ndim - 1 - behind] == value.size == weight.shape[_axis(layer)]
    return value.reshape(-1).astype(np.float64) if value.size == 1 or is_vector else None


def _axis(layer: Node) -> int:
    """Of the weights, that of the output's channels."""
    return 0 if layer.operator == "Conv" else 1
