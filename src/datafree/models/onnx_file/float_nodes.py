"""Nodes of an ONNX file that have no row in the table, in the middle of a network: run as they are, in float.

Each is one call of the operator `datafree::onnx_node`, which holds the node itself. ONNX Runtime runs it, or else
`onnx.reference`. Only operators of ONNX's own domain are run, without networks or files in them: that is all that a
tampered node can ask for.
"""

from __future__ import annotations

import base64
import importlib
import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datafree.models.onnx_file.records import Node
from datafree.models.state_dict import ModelError

NOT_RUN = (
    "Random", "Bernoulli", "Multinomial", "Sequence", "SplitToSequence", "ConcatFromSequence", "Optional", "String",
    "Regex", "TfIdf", "ImageDecoder", "If", "Loop", "Scan", "Constant",
)  # fmt: skip
"""Beginnings of names: what gives something else each time, or no tensor; what holds networks."""

Run = Callable[[list[np.ndarray]], Sequence[np.ndarray]]


@torch.library.custom_op(
    "datafree::onnx_node",
    mutates_args=(),
    schema="(Tensor x, Tensor[] others, str node, int opset, str sides, str name) -> Tensor[]",
)
def onnx_node(x: Tensor, others: Sequence[Tensor], node: str, opset: int, sides: str, name: str) -> list[Tensor]:
    """The outputs of one node; `node`, `sides` are what `encoded` and `sides_of` give, `name` is for messages."""
    given = [value.detach().cpu().contiguous().numpy() for value in (x, *others)]
    found = _answers(node, opset, name, given)
    return [torch.from_numpy(np.array(value)).to(x.device) for value in found]


@onnx_node.register_fake
def _(x: Tensor, others: Sequence[Tensor], node: str, opset: int, sides: str, name: str) -> list[Tensor]:
    given = [x, *others]
    side: Callable[[Any], Any] = lambda s: s if isinstance(s, int) else given[s[0]].shape[s[1]] * s[2] // s[3]  # noqa: E731
    return [
        x.new_empty([side(s) for s in shape], dtype=getattr(torch, kind))
        for kind, shape in json.loads(sides)
    ]  # fmt: skip


def _no_gradient(ctx: Any, gradients: list[Tensor]) -> tuple[Any, ...]:
    """None goes through: what images are moved by does not reach behind the node, and they are moved by all else."""
    return None, [None] * ctx.count, None, None, None, None


def _keep_count(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.count = len(inputs[1])


onnx_node.register_autograd(_no_gradient, setup_context=_keep_count)


def why_not_run(node: Node, opset: int) -> str:
    """What keeps a node from being run as it is; "" = nothing."""
    try:
        check_node(encoded(node), opset)
    except ModelError as error:
        return str(error)
    return ""


def encoded(node: Node) -> str:
    """The node's serialized form as text, with its inputs called x0, x1, ... and its outputs y0, y1, ..."""
    proto = importlib.import_module("onnx").NodeProto.FromString(node.proto)
    proto.input[:] = _numbered("x", proto.input)
    proto.output[:] = [f"y{i}" for i in range(len(proto.output))]
    proto.name = proto.doc_string = ""
    return base64.b64encode(proto.SerializeToString(deterministic=True)).decode()


def _numbered(letter: str, names: Sequence[str]) -> list[str]:
    """x0, x1, ... in place of names, counted without those that are left out."""
    count = iter(range(len(names)))
    return [f"{letter}{next(count)}" if name else "" for name in names]


def check_node(text: str, opset: int) -> Any:
    """The `onnx.NodeProto` of an encoded node.

    Raises:
        ModelError: it is no node, or one that is not run here.
    """
    onnx = _import_onnx()
    try:
        proto = onnx.NodeProto.FromString(base64.b64decode(text, validate=True))
        kinds = {onnx.AttributeProto.AttributeType.Name(a.type) for a in proto.attribute}
    except Exception as error:  # of base64 and protobuf
        raise ModelError(f"a node is damaged: {' '.join(str(error).split())[:100]}") from None
    name = f"{proto.domain}.{proto.op_type}".lstrip(".")
    if proto.domain not in ("", "ai.onnx") or proto.op_type.startswith(NOT_RUN):
        raise ModelError(
            f"{name} is no operator that is run as it is: those of ONNX alone are, from tensors to tensors"
        )
    if not kinds <= {"FLOAT", "FLOATS", "INT", "INTS", "STRING", "STRINGS", "TENSOR"}:
        raise ModelError(
            f"{name} holds {', '.join(sorted(kinds))}; numbers, text and tensors may be in a node that is run"
        )
    if any(onnx.external_data_helper.uses_external_data(a.t) for a in proto.attribute if a.HasField("t")):
        raise ModelError(f"{name} keeps a tensor in another file; nodes that are run hold their own")
    try:
        onnx.defs.get_schema(proto.op_type, opset, "")
    except Exception:  # of onnx
        raise ModelError(f"{name} is no operator of ONNX's opset {opset}") from None
    return proto


def _import_onnx() -> Any:
    try:
        importlib.import_module("onnx.defs")
        return importlib.import_module("onnx")
    except ModuleNotFoundError as error:
        raise ModelError('a node of an ONNX file is run by the package onnx; pip install "datafree[onnx]"') from error


def _answers(text: str, opset: int, name: str, given: list[np.ndarray]) -> Sequence[np.ndarray]:
    """Of the first that can: ONNX Runtime, `onnx.reference`."""
    check_node(text, opset)
    reason = ""
    for place in RUNNERS:
        try:
            return runner(place, text, opset, tuple(value.dtype.name for value in given))(given)
        except Exception as error:  # a package is missing, or lacks the operator; in types of their own
            reason = " ".join(str(error).split())[:200].rstrip(".")
    raise ModelError(
        f"{name} is not read, and neither ONNX Runtime nor onnx.reference runs it: {reason}; export the network "
        "without it"
    )


@lru_cache(maxsize=256)
def runner(place: str, text: str, opset: int, kinds: tuple[str, ...]) -> Run:
    """What runs an encoded node on arrays of these types, in one of RUNNERS."""
    return RUNNERS[place](_model(check_node(text, opset), opset, kinds))


def _model(proto: Any, opset: int, kinds: tuple[str, ...]) -> Any:
    """A network of this node alone."""
    helper = importlib.import_module("onnx.helper")
    names = [name for name in proto.input if name]
    types = [helper.np_dtype_to_tensor_dtype(np.dtype(kind)) for kind in kinds]
    inputs = [helper.make_tensor_value_info(n, kind, None) for n, kind in zip(names, types, strict=True)]
    outputs = [helper.make_empty_tensor_value_info(name) for name in proto.output]
    graph = helper.make_graph([proto], "node", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def _in_runtime(model: Any) -> Run:
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    opened = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [item.name for item in opened.get_inputs()]
    return lambda given: opened.run(None, dict(zip(names, given, strict=True)))


def _in_reference(model: Any) -> Run:
    evaluator = importlib.import_module("onnx.reference").ReferenceEvaluator(model)
    names = [item.name for item in model.graph.input]
    return lambda given: evaluator.run(None, dict(zip(names, given, strict=True)))


RUNNERS: dict[str, Callable[[Any], Run]] = {"onnxruntime": _in_runtime, "onnx.reference": _in_reference}


def run_node(node: Node, values: Sequence[Any], opset: int, sides: str) -> list[Tensor]:
    """The node on values as operators of the table get them."""
    given = [as_tensor(value, node) for value in values if value is not None]
    return torch.ops.datafree.onnx_node(given[0], given[1:], encoded(node), opset, sides, str(node))


def as_tensor(value: Any, node: Node) -> Tensor:
    """A tensor, or a constant or shape as one; the size of the batch is none."""
    if isinstance(value, Tensor):
        return value
    if value.dtype == object and not all(isinstance(x, int | float) for x in value.flat):
        raise batch_refusal(node)
    found = np.array(value.tolist()) if value.dtype == object else np.array(value)
    return torch.from_numpy(found.astype(np.float32) if found.dtype == np.float64 else found)


def batch_refusal(node: Node) -> ModelError:
    """The error for a node that reads how many images there are."""
    return ModelError(f"{node} is not read, and it reads the size of the batch; export the network without it")


def sides_of(node: Node, given: Sequence[Sequence[Tensor]], found: Sequence[Sequence[Tensor]]) -> str:
    """Types and shapes of a node's outputs, as text: numbers, and what grows with the batch as a share of an input's.

    Args:
        given: its inputs for a batch of two, and of three.
        found: its outputs for both.

    Raises:
        ModelError: a size hangs on values, or on the batch in another way.
    """
    grows = [
        (i, d, int(a)) for i, (two, three) in enumerate(zip(*given, strict=True)) if two.dim() == three.dim()
        for d, (a, b) in enumerate(zip(two.shape, three.shape, strict=True)) if 3 * a == 2 * b and a
    ]  # fmt: skip
    kinds = []
    for two, three in zip(*found, strict=True):
        if two.dim() != three.dim():
            raise _size_refusal(node, two, three)
        sides = []
        for a, b in zip(two.shape, three.shape, strict=True):
            place = min(grows, key=lambda item: item[2] != a, default=None)
            if a != b and (place is None or 3 * a != 2 * b):
                raise _size_refusal(node, two, three)
            sides.append(int(a) if a == b or place is None else [*place[:2], *_share(int(a), place[2])])
        kinds.append([str(two.dtype).removeprefix("torch."), sides])
    return json.dumps(kinds)


def _share(part: int, whole: int) -> tuple[int, int]:
    return (1, 1) if part == whole else (part, whole)


def _size_refusal(node: Node, two: Tensor, three: Tensor) -> ModelError:
    return ModelError(
        f"{node} is not read, and the size of what it gives does not follow the batch: {tuple(two.shape)} for two, "
        f"{tuple(three.shape)} for three; export the network without it"
    )
