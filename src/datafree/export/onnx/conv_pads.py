"""Zero paddings before convolutions, written as the convolutions' own: a node less, and one that only moves memory."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx


def fold_paddings(model: onnx.ModelProto) -> int:
    """Fold every padding with zeros, of floats or of integers with their zero point, that convolutions alone read.

    Returns:
        How many there were.
    """
    from onnx import numpy_helper

    graph = model.graph
    stored = {t.name: t for t in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    outputs = {value.name for value in graph.output}
    constant = lambda name: numpy_helper.to_array(stored[name]) if name in stored else None  # noqa: E731
    folded = 0
    for pad in [n for n in graph.node if n.op_type == "Pad" and _mode(n) == "constant"]:
        users = readers[pad.output[0]]
        dequantized = len(users) == 1 and users[0].op_type == "DequantizeLinear"
        convolutions = readers[users[0].output[0]] if dequantized else users
        zero = constant(users[0].input[2]) if dequantized else np.zeros(())
        sides, value = constant(pad.input[1]), constant(pad.input[2]) if len(pad.input) > 2 else np.zeros(())
        if {pad.output[0], *users[0].output} & outputs or sides is None or value is None or zero is None:
            continue
        if not convolutions or any(n.op_type != "Conv" for n in convolutions) or (value != zero).any():
            continue
        before, after = np.split(sides, 2)
        if sides.min() < 0 or before[:2].any() or after[:2].any():
            continue
        for conv in convolutions:
            _add_pads(conv, [*before[2:].tolist(), *after[2:].tolist()])
        for user in users:
            user.input[0] = pad.input[0]
        graph.node.remove(pad)
        folded += 1
    return folded


def _mode(pad: onnx.NodeProto) -> str:
    return next((a.s.decode() for a in pad.attribute if a.name == "mode"), "constant")


def _add_pads(conv: onnx.NodeProto, more: list[int]) -> None:
    from onnx import helper

    settings = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
    own = settings.get("pads", [0] * len(more))
    settings["pads"] = [a + b for a, b in zip(own, more, strict=True)]
    del conv.attribute[:]
    conv.attribute.extend(helper.make_attribute(name, value) for name, value in settings.items())
