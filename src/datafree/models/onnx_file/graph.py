"""An ONNX file as plain records: nodes, constants, inputs and outputs. No code runs from it."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from datafree.models.state_dict import ModelError

OPSETS = range(7, 23)
QUANTIZING = 13
QUANTIZED = ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "ConvInteger", "MatMulInteger", "QLinearMatMul")
FLOATS = ("float16", "float64", "bfloat16")  # read as float32


@dataclass(frozen=True)
class Node:
    """One call: an operator, the names of its inputs ("" = left out) and outputs, its attributes."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(hash=False)

    def __str__(self) -> str:
        return f"{self.operator} ({self.name or self.outputs[0]})"


@dataclass(frozen=True)
class Input:
    """An input of the network; None = a side that may be any."""

    name: str
    sides: tuple[int | None, ...]


@dataclass(frozen=True)
class Graph:
    """What an ONNX file holds. Constants are of nodes too, and of what can be computed from constants alone."""

    opset: int
    nodes: tuple[Node, ...]
    constants: dict[str, np.ndarray]
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    metadata: dict[str, str]


def read_graph(path: Path) -> Graph:
    """Read an ONNX file and compute what does not depend on its inputs.

    Raises:
        ModelError: not an ONNX file, damaged, external data is missing, or something in it cannot be read; one line.
    """
    onnx, model = _import_onnx(), read_onnx(path)
    opset = _opset(model, path)
    graph = model.graph
    constants = {tensor.name: _array(onnx, tensor, path) for tensor in graph.initializer}
    nodes = []
    for proto in graph.node:
        node = _node(onnx, proto, path)
        values = _constant(onnx, proto, node, constants, opset, path)
        if values is None:
            nodes.append(node)
        else:
            constants.update(zip(node.outputs, values, strict=True))
    inputs = tuple(_input(value) for value in graph.input if value.name not in constants)
    outputs = tuple(value.name for value in graph.output)
    nodes = _with_biases(_needed(nodes, outputs), constants, outputs)
    return Graph(opset, nodes, constants, inputs, outputs, {e.key: e.value for e in model.metadata_props})


def read_onnx(path: Path) -> Any:
    """An ONNX file as `onnx.ModelProto`, its weights in it; of opset 13 at least, where onnx can bring it there.

    Opset 13 is the first that rounds weights with a scale for each channel.

    Raises:
        ModelError: not an ONNX file, damaged, of an opset that is not read, or external data is missing.
    """
    onnx = _import_onnx()
    model = _load(onnx, path)
    if _opset(model, path) >= QUANTIZING:
        return model
    try:
        return onnx.version_converter.convert_version(model, QUANTIZING)
    except Exception:  # it has no way for some operators, and raises what C++ gives it
        return model


def _import_onnx() -> Any:
    try:
        importlib.import_module("onnx.version_converter")
        return importlib.import_module("onnx")
    except ModuleNotFoundError as error:
        raise ModelError('ONNX files need the package onnx; pip install "datafree[onnx]"') from error


def _load(onnx: Any, path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"there is no file {path}; give the path of an .onnx file")
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf and onnx raise types of their own
        if "should be stored in" in str(error):
            raise ModelError(f"{path} keeps its weights in another file: {_line(error)}; put it beside it") from None
        raise ModelError(f"{path} is not an ONNX file, or is cut off: {_line(error)}") from None
    if not model.graph.node:
        raise ModelError(f"{path} holds no network: it is empty or not an ONNX file")
    return model


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _opset(model: Any, path: Path) -> int:
    versions = {entry.domain: entry.version for entry in model.opset_import}
    opset = versions.get("", versions.get("ai.onnx", 0))
    if opset not in OPSETS:
        raise ModelError(
            f"{path} is of opset {opset}; {OPSETS[0]} to {OPSETS[-1]} are read: export it anew with another opset"
        )
    return opset


def _array(onnx: Any, tensor: Any, path: Path) -> np.ndarray:
    try:
        value = onnx.numpy_helper.to_array(tensor)
    except Exception as error:
        raise ModelError(f"{path}: the constant {tensor.name!r} cannot be read: {_line(error)}") from None
    return value.astype(np.float32) if value.dtype.name in FLOATS else value


def _node(onnx: Any, proto: Any, path: Path) -> Node:
    if proto.domain not in ("", "ai.onnx"):
        raise ModelError(
            f"{path}: {proto.op_type} ({proto.name}) is of the domain {proto.domain!r}, unknown here; "
            "export the network with operators of ONNX alone"
        )
    if proto.op_type in QUANTIZED:
        raise ModelError(f"{path} is quantized already ({proto.op_type}); give the float network it was made from")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
    if any(isinstance(value, onnx.GraphProto) for value in attributes.values()):
        raise ModelError(
            f"{path}: {proto.op_type} ({proto.name}) holds a network of its own, which may or may not run; export the "
            "network without control flow"
        )
    attributes = {k: v.decode() if isinstance(v, bytes) else v for k, v in attributes.items()}
    return Node(proto.name, proto.op_type, tuple(proto.input), tuple(proto.output), attributes)


def _constant(
    onnx: Any, proto: Any, node: Node, constants: dict[str, np.ndarray], opset: int, path: Path
) -> Sequence[np.ndarray] | None:
    """The values of a node that hangs on constants alone; None for others."""
    if node.operator == "Constant":
        [(kind, value)] = node.attributes.items()
        return [_array(onnx, value, path) if kind == "value" else np.array(value)]
    given = [name for name in node.inputs if name]
    if not given or not all(name in constants for name in given) or node.operator.startswith("Random"):
        return None
    reference = importlib.import_module("onnx.reference")
    inputs = [onnx.helper.make_tensor_value_info(name, 1, None) for name in given]
    outputs = [onnx.helper.make_tensor_value_info(name, 1, None) for name in node.outputs]
    alone = onnx.helper.make_model(
        onnx.helper.make_graph([proto], "constant", inputs, outputs),
        opset_imports=[onnx.helper.make_opsetid("", opset)],
    )
    try:
        found = reference.ReferenceEvaluator(alone).run(None, {name: constants[name] for name in given})
    except Exception as error:
        raise ModelError(f"{path}: {node} of constants cannot be computed: {_line(error)}") from None
    return [np.asarray(value) for value in found]


def _input(value: Any) -> Input:
    sides = value.type.tensor_type.shape.dim
    return Input(value.name, tuple(side.dim_value or None for side in sides))


def _needed(nodes: Sequence[Node], outputs: Sequence[str]) -> tuple[Node, ...]:
    """Nodes that the outputs hang on."""
    wanted, needed = {*outputs}, []
    for node in reversed(nodes):
        if wanted & {*node.outputs}:
            wanted |= {*node.inputs}
            needed.append(node)
    return tuple(reversed(needed))


def _with_biases(nodes: tuple[Node, ...], constants: dict[str, np.ndarray], outputs: Sequence[str]) -> tuple[Node, ...]:
    """A product with a matrix and the sum behind it as one linear layer: MatMul with a third input."""
    readers = Counter([*(name for node in nodes for name in node.inputs), *outputs])
    ranks = {name: value.ndim for name, value in constants.items()}
    matrices = {n.outputs[0]: n for n in nodes if n.operator == "MatMul" and ranks.get(n.inputs[1]) == 2}
    joined, gone = [], set()
    for node in nodes:
        biases = [name for name in node.inputs if node.operator == "Add" and ranks.get(name) == 1]
        product = next((matrices[name] for name in node.inputs if name in matrices and readers[name] == 1), None)
        if biases and product:
            gone.add(product.outputs)
            node = replace(product, inputs=(*product.inputs, biases[0]), outputs=node.outputs)
        joined.append(node)
    return tuple(node for node in joined if node.outputs not in gone)
