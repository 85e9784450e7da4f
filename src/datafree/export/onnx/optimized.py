"""What ONNX Runtime made of a file: nodes that still compute in float or only move values, and the time they take."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import onnx

FLOAT, UINT8 = 1, 2  # onnx.TensorProto
CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast", "ReorderInput", "ReorderOutput"})
MOVES = frozenset({
    "Concat", "QLinearConcat", "DepthToSpace", "SpaceToDepth", "Expand", "Flatten", "Gather", "Identity", "Pad",
    "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
STEPS = frozenset({"Mul", "SpaceToDepth"})  # of the image, before it is quantized
BEFORE = STEPS | {"QuantizeLinear"}
Kind = Literal["float", "moves"]


@dataclass(frozen=True)
class NodeShare:
    """A node of the optimized graph that is no integer kernel.

    kind: it computes on float values; or it moves values, or converts them.
    share: of the time of all nodes in a run on one image, percent.
    """

    operator: str
    name: str
    kind: Kind
    share: float

    def __str__(self) -> str:
        return f"{self.operator} {self.name}".strip()


def read_nodes(optimized: Path, profile: Path) -> tuple[NodeShare, ...]:
    """Nodes that are no integer kernels, in execution order.

    Args:
        optimized: the graph, as ONNX Runtime wrote it.
        profile: what it wrote of runs of that graph.
    """
    import onnx

    shares = _shares(profile)
    kinds = kinds_of_nodes(onnx.load(optimized, load_external_data=False))
    return tuple(NodeShare(node.op_type, node.name, kind, shares.get(node.name, 0.0)) for node, kind in kinds)


def _shares(profile: Path) -> dict[str, float]:
    """Percent of the time by node, each at its fastest: other programs only ever make one slower."""
    times: dict[str, list[float]] = defaultdict(list)
    for event in json.loads(profile.read_text()):
        name, mark, _ = event["name"].rpartition("_kernel_time")
        if mark and event.get("cat") == "Node":
            times[name].append(event["dur"])
    each = {name: min(spent) for name, spent in times.items()}
    whole = sum(each.values()) or 1
    return {name: 100 * spent / whole for name, spent in each.items()}


def kinds_of_nodes(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, Kind]]:
    """Nodes that compute on float values, or only move or convert values; integer kernels are left out.

    Types are followed from inputs and stored tensors through the graph: integer kernels give bytes, other operators
    what their first input is.
    """
    types = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
    images = set(types)
    types |= {t.name: t.data_type for t in model.graph.initializer}
    readers: dict[str, set[str]] = defaultdict(set)
    for node in model.graph.node:
        for name in node.input:
            readers[name].add(node.op_type)
    found: list[tuple[onnx.NodeProto, Kind]] = []
    for node in model.graph.node:
        kind = _type_of(node, types)
        types |= dict.fromkeys(node.output, kind)
        reads_float = any(types.get(name) == FLOAT for name in node.input[:1])
        steps = node.op_type in STEPS and node.input[0] in images and readers[node.output[0]] <= BEFORE
        images |= set(node.output) if steps else set()
        if node.op_type in CONVERSIONS or steps:
            found.append((node, "moves"))
        elif kind == FLOAT and reads_float:
            found.append((node, "float"))
        elif node.op_type in MOVES:
            found.append((node, "moves"))
    return found


def _type_of(node: onnx.NodeProto, types: dict[str, int]) -> int:
    """Element type of what a node gives."""
    if node.op_type == "DequantizeLinear" or (node.op_type == "QGemm" and len(node.input) < 9):  # no output grid
        return FLOAT
    if node.op_type in ("QuantizeLinear", "QGemm") or node.op_type.startswith("QLinear"):
        return UINT8
    return types.get(node.input[0], FLOAT) if node.input else FLOAT
