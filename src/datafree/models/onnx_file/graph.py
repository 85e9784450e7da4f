"""An ONNX file as plain records: nodes, constants, inputs and outputs. No code runs from it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datafree.extras import install
from datafree.models.onnx_file.bounds import check_constant
from datafree.models.onnx_file.joins import joined_layers
from datafree.models.onnx_file.operators import OPERATORS
from datafree.models.onnx_file.records import Graph, Input, Node, needed
from datafree.models.onnx_file.weight_files import check_weight_files, read_weights_, unreadable
from datafree.models.state_dict import ModelError

OPSETS = range(7, 23)
QUANTIZING_OPSET = 13  # the first that rounds weights with a scale for each channel
QUANTIZED = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearConv",
    "ConvInteger",
    "MatMulInteger",
    "QLinearMatMul",
)
FLOATS = ("float16", "float64", "bfloat16")  # read as float32
FLATTENING = ("Softmax", "LogSoftmax")  # before opset 13 over all dimensions from `axis` on


def read_graph(path: Path) -> Graph:
    """Read an ONNX file and compute what does not depend on its inputs.

    Raises:
        ModelError: not an ONNX file, damaged, external data is missing, or something in it cannot be read; one line.
    """
    onnx, model = _import_onnx(), read_onnx(path)
    try:
        return _graph(onnx, model, _opset(model, path), path)
    except ModelError:
        raise
    except Exception as error:  # of protobuf and onnx, on a file that was altered
        raise ModelError(f"{path} is damaged: {_line(error)}; take another copy of the file") from error


def _graph(onnx: Any, model: Any, opset: int, path: Path) -> Graph:
    proto = model.graph
    constants = {tensor.name: _array(onnx, tensor, path) for tensor in proto.initializer}
    nodes = []
    for call in proto.node:
        node = _node(onnx, call, opset, path)
        values = _constant(onnx, call, node, constants, opset, path)
        if values is None:
            nodes.append(node)
        else:
            constants.update(zip(node.outputs, values, strict=True))
    outputs = tuple(value.name for value in proto.output)
    nodes = joined_layers(needed(nodes, outputs), constants, outputs)
    inputs = [_input(onnx, value) for value in proto.input if value.name not in constants]
    return Graph(opset, nodes, constants, tuple(inputs), outputs, {e.key: e.value for e in model.metadata_props})


def read_onnx(path: Path) -> Any:
    """An ONNX file as `onnx.ModelProto`; of opset 13 at least, where onnx can bring it there.

    Stored tensors that the file keeps in others beside it are not read yet: `read_weights_`.

    Raises:
        ModelError: not an ONNX file, damaged, of an opset that is not read, or external data is missing.
    """
    onnx = _import_onnx()
    model = _load(onnx, path)
    if _opset(model, path) >= QUANTIZING_OPSET:
        return model
    read_weights_(model.graph.initializer, path)
    try:
        return _with_old_resizes(
            onnx, onnx.version_converter.convert_version(model, QUANTIZING_OPSET), _opset(model, path)
        )
    except Exception:  # it has no way for some operators, and raises what C++ gives it
        return model


def _with_old_resizes(onnx: Any, model: Any, opset: int) -> Any:
    """The converter leaves out how pixels were placed before opset 11, so that they would be placed as since."""
    for node in model.graph.node:
        if opset < 11 and node.op_type == "Resize":
            known = {a.name for a in node.attribute}
            old = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            added = [onnx.helper.make_attribute(name, value) for name, value in old.items() if name not in known]
            node.attribute.extend(added)
    return model


def _import_onnx() -> Any:
    try:
        importlib.import_module("onnx.version_converter")
        return importlib.import_module("onnx")
    except ModuleNotFoundError as error:
        raise ModelError(f"ONNX files need the package onnx; {install('onnx')}") from error


def _load(onnx: Any, path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"there is no file {path}; give the path of an .onnx file")
    try:
        model = onnx.load(path, load_external_data=False)
        check_weight_files(model, path)
    except ModelError:
        raise
    except Exception as error:  # protobuf and onnx raise types of their own
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
        value = onnx.numpy_helper.to_array(tensor, str(path.absolute().parent))
    except Exception as error:
        if onnx.external_data_helper.uses_external_data(tensor):
            raise unreadable(tensor, path, error) from None
        raise ModelError(f"{path}: the constant {tensor.name!r} cannot be read: {_line(error)}") from None
    return value.astype(np.float32) if value.dtype.name in FLOATS else value


def _node(onnx: Any, proto: Any, opset: int, path: Path) -> Node:
    if proto.op_type in QUANTIZED:
        raise ModelError(f"{path} is quantized already ({proto.op_type}); give the float network it was made from")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
    graphs = [value for value in attributes.values() if isinstance(value, onnx.GraphProto)]
    attributes = {name: _value(v) for name, v in attributes.items() if v not in graphs}
    if proto.op_type in FLATTENING and opset < 13:
        attributes = {"axis": 1, **attributes, "flattens": True}
    domain = "" if proto.domain in ("", "ai.onnx") else f"{proto.domain}."
    inputs = (*proto.input, *(name for graph in graphs for name in _outer(graph)))
    inner = tuple(name for graph in graphs for name in _operators(graph)) if graphs else None
    kept = b"" if proto.op_type in OPERATORS or proto.op_type == "Constant" else proto.SerializeToString()
    return Node(proto.name, domain + proto.op_type, inputs, tuple(proto.output), attributes, inner=inner, proto=kept)


def _value(value: Any) -> Any:
    """An attribute; a float32 as the number that was meant, 0.001 instead of 0.0010000000474974513."""
    if isinstance(value, bytes):
        return value.decode()
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _operators(graph: Any) -> list[str]:
    inner = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return [*(node.op_type for node in graph.node), *(name for other in inner for name in _operators(other))]


def _outer(graph: Any) -> list[str]:
    """What the network of a control-flow node reads of the one around it."""
    own = {t.name for t in (*graph.initializer, *graph.input)} | {name for node in graph.node for name in node.output}
    read = [name for node in graph.node for name in node.input]
    read += [name for node in graph.node for a in node.attribute if a.HasField("g") for name in _outer(a.g)]
    return [
        name for name in dict.fromkeys([*read, *(value.name for value in graph.output)]) if name and name not in own
    ]


def _constant(
    onnx: Any, proto: Any, node: Node, constants: dict[str, np.ndarray], opset: int, path: Path
) -> Sequence[np.ndarray] | None:
    """The values of a node that hangs on constants alone; None for others."""
    if node.operator == "Constant":
        [(kind, value)] = node.attributes.items()
        return [_array(onnx, value, path) if kind == "value" else np.array(value)]
    given = [name for name in node.inputs if name]
    if (
        not given
        or node.inner is not None
        or not all(name in constants for name in given)
        or node.operator.startswith("Random")
    ):
        return None
    check_constant(proto, opset, {name: constants[name] for name in given}, f"{path}: {node}")
    inputs = [onnx.helper.make_tensor_value_info(name, 1, None) for name in given]
    outputs = [onnx.helper.make_tensor_value_info(name, 1, None) for name in node.outputs]
    alone = onnx.helper.make_model(
        onnx.helper.make_graph([proto], "constant", inputs, outputs),
        opset_imports=[onnx.helper.make_opsetid("", opset)],
    )
    try:
        evaluator = importlib.import_module("onnx.reference").ReferenceEvaluator(alone)
        found = evaluator.run(None, {name: constants[name] for name in given})
    except Exception as error:
        raise ModelError(f"{path}: {node} of constants cannot be computed: {_line(error)}") from None
    return [np.asarray(value) for value in found]


def _input(onnx: Any, value: Any) -> Input:
    kind = value.type.tensor_type
    sides = tuple(side.dim_value if side.dim_value > 0 else None for side in kind.shape.dim)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    return Input(value.name, sides, "float32" if dtype in FLOATS else dtype)
