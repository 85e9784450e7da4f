"""Where the network ends: what is not read may follow its last layer, and stays in the file as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from datafree.models.onnx_file.float_nodes import why_not_run
from datafree.models.onnx_file.operators import OPERATORS
from datafree.models.onnx_file.records import LAYERS, Graph, Node, needed
from datafree.models.onnx_file.shapes import SHAPE_OPERATORS, shape_values
from datafree.models.state_dict import ModelError

WHOLE = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not")
"""Operators that yield no floats; a network does not end in them."""


def without_tail(graph: Graph, path: str | Path) -> Graph:
    """End the network in front of what is not read, where no layer is in there or behind it; else that runs as it is.

    The network's outputs are then the file's own that are computed in front of it, and what the tail reads.

    Raises:
        ModelError: there is nothing to compress, or layers are in what is not read or behind it, and it cannot run.
    """
    graph = _with_float_nodes(graph)
    unread = _unread(graph)
    tail = _tail(graph.nodes, {name for node in unread for name in node.outputs if name}, graph.outputs)
    behind = {id(node) for node in tail}
    nodes = tuple(node for node in graph.nodes if id(node) not in behind)
    foreign = {id(node) for node in unread}
    layers = [node for node in tail if _holds_layers(node, graph.constants, is_read=id(node) not in foreign)]
    if unread and (layers or not any(_holds_layers(node, graph.constants) for node in nodes)):
        raise ModelError(f"{path}: {_refusal(unread, layers)}")
    ended = _ended(graph, nodes, tail)
    _check_kind(ended, path)
    return ended


def _unread(graph: Graph) -> list[Node]:
    """Nodes without a row in the table, and arithmetic on shapes that is done on tensors."""
    numbers = shape_values(graph.nodes, graph.constants) | {*graph.constants, ""}
    return [
        node
        for node in graph.nodes
        if node.operator not in OPERATORS
        and not node.runs_as_it_is
        and not (node.operator in SHAPE_OPERATORS and numbers >= {*node.inputs})
    ]


def _with_float_nodes(graph: Graph) -> Graph:
    """Mark what is not read, has weights or comes before layers, and can run as it is."""
    foreign = {id(node) for node in _unread(graph)}
    wanted: set[str] = set()
    nodes = []
    for node in reversed(graph.nodes):
        is_foreign = id(node) in foreign
        if wanted & {*node.outputs} or _holds_layers(node, graph.constants, is_read=not is_foreign):
            wanted |= {*node.inputs}
            is_run = is_foreign and node.inner is None and not why_not_run(node, graph.opset)
            node = replace(node, runs_as_it_is=True) if is_run else node
        nodes.append(node)
    return replace(graph, nodes=tuple(reversed(nodes)))


def _tail(nodes: Sequence[Node], late: set[str], outputs: Sequence[str]) -> list[Node]:
    """What yields `late`, what hangs on it, and what yields no floats and is read only there."""
    for node in nodes:
        if late & {*node.inputs}:
            late |= {*node.outputs}
    outside = Counter([*outputs, *(name for node in nodes for name in node.inputs)])  # how many others read it
    tail: list[Node] = []
    for node in reversed(nodes):
        is_inside = not any(outside[name] for name in node.outputs)
        if late & {*node.outputs} or (is_inside and _yields_no_floats(node)):
            tail.append(node)
            outside.subtract(node.inputs)
    return tail[::-1]


def _yields_no_floats(node: Node) -> bool:
    return node.operator in WHOLE or (node.operator == "Cast" and node.attributes.get("to") not in (1, 10, 11, 16))


def _holds_layers(node: Node, constants: dict[str, np.ndarray], *, is_read: bool = True) -> bool:
    """A layer, a node with a network of layers in it, or one that is not read and has weights."""
    if node.operator in LAYERS:
        return len(node.inputs) > 1 and node.inputs[1] in constants
    known = [constants[name] for name in node.inputs if name in constants]
    has_weights = any(value.ndim > 1 and value.dtype == np.float32 for value in known)
    if node.inner is not None:
        return any(name in LAYERS for name in node.inner)
    return not is_read and has_weights


def _refusal(unread: Sequence[Node], layers: Sequence[Node]) -> str:
    """What is not read, why, and what to do, in one line."""
    node = next((n for n in unread if any(n is layer for layer in layers)), unread[0])
    follows = f", and layers follow it ({layers[0]})" if layers and layers[0] is not node else ""
    if node.inner is not None:
        return (
            f"{node} holds a network of its own, which may or may not run{follows}; export the network without "
            "control flow"
        )
    if "." in node.operator:
        domain, _, name = node.operator.rpartition(".")
        return (
            f"{name} ({node.name or node.outputs[0]}) is of the domain {domain!r}, unknown here{follows}; export the "
            "network with operators of ONNX alone"
        )
    names = list(dict.fromkeys(str(n) for n in unread))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}: not read{follows}; allowed are {', '.join(sorted(OPERATORS))}"


def _check_kind(graph: Graph, path: str | Path) -> None:
    counts = Counter(node.operator for node in graph.nodes)
    what = ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    if not any(_holds_layers(node, graph.constants) for node in graph.nodes):
        raise ModelError(f"{path} has no convolution and no linear layer ({what}): there is nothing to compress")
    attention = [n for n in graph.nodes if n.operator == "MatMul" and not {*n.inputs} & graph.constants.keys()]
    if attention and not counts["Conv"] and not counts["ConvTranspose"]:
        raise ModelError(
            f"{path} is a transformer without convolutions ({what}); networks with convolutions are compressed here"
        )


def _ended(graph: Graph, nodes: Sequence[Node], tail: Sequence[Node]) -> Graph:
    """The network of these nodes. What of it the tail reads is an output, if it is no shape and hangs on a layer."""
    made = {name for node in nodes for name in node.outputs} - shape_values(nodes, graph.constants)
    reached: set[str] = set()
    for node in nodes:
        if reached & {*node.inputs} or _holds_layers(node, graph.constants):
            reached |= made & {*node.outputs}
    own = (name for name in graph.outputs if name in made)
    read = (name for node in tail for name in node.inputs if name in reached)
    outputs = tuple(dict.fromkeys([*own, *read]))
    nodes = needed(nodes, outputs)
    read = {name for node in nodes for name in node.inputs}
    inputs = tuple(given for given in graph.inputs if given.name in read)
    return replace(graph, nodes=nodes, inputs=inputs, outputs=outputs, tail=tuple(tail))
