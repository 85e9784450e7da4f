"""Nodes of the ONNX file a network was read from that run as they are, written into a graph of its own."""

from __future__ import annotations

import torch

from datafree.export.onnx.writer import Call
from datafree.models import check_node


def write_float_node(call: Call, x: str, others: list[str], node: str, opset: int, sides: str, name: str) -> list[str]:
    """Append the node under names of this graph.

    Raises:
        ExportError: its operator means something else in the opset that is written.
    """
    from onnx import defs

    proto, writer = check_node(node, opset), call.writer
    try:
        is_same = (
            defs.get_schema(proto.op_type, writer.opset, "").since_version
            == defs.get_schema(proto.op_type, opset, "").since_version
        )
    except defs.SchemaError:
        is_same = False
    if not is_same:
        call.refuse(f"{name} is of opset {opset}, which has another {proto.op_type}")
    given = iter([x, *others])
    proto.input[:] = [next(given) if read else "" for read in proto.input]
    proto.name = writer.unique(call.name)
    proto.output[:] = [proto.name, *(writer.unique(f"{proto.name}_output_{i}") for i in range(1, len(proto.output)))]
    writer.nodes.append(proto)
    return list(proto.output)


FLOAT_NODES = {torch.ops.datafree.onnx_node.default: write_float_node}
