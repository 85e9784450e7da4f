"""Whether a written file is what its runtime takes: one rule a fact, each lists the nodes that break it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from datafree.export.onnx.writer import opset_of
from datafree.recipe import WEIGHT_RANGE, Target

if TYPE_CHECKING:
    import onnx

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
CONVOLUTIONS, LINEAR = ("Conv", "ConvTranspose"), ("Gemm", "MatMul")
CLIPS = ("Relu", "Clip")
MOVES = (
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
ONE_GRID = (*MOVES, "AveragePool", "GlobalMaxPool", "Resize")
OWN_GRID = {"Sigmoid": (1 / 256, -128), "Softmax": (1 / 256, -128), "Tanh": (1 / 128, 0)}
NEAR = 1e-5  # relative: products of scales are rounded to float32


@dataclass(frozen=True)
class FileView:
    """A file's nodes by the values they make and read, and its stored tensors by name."""

    nodes: list[onnx.NodeProto]
    made: dict[str, onnx.NodeProto]
    readers: dict[str, list[onnx.NodeProto]]
    stored: dict[str, np.ndarray]
    outputs: set[str]
    opset: int

    def parameter(self, node: onnx.NodeProto, place: int) -> onnx.NodeProto | None:
        """The dequantize node of the stored integers that a layer reads, transposed or not."""
        found = self.made.get(node.input[place]) if len(node.input) > place else None
        while found is not None and found.op_type in MOVES:
            found = self.made.get(found.input[0])
        return found if found is not None and self.is_parameter(found) else None

    def is_parameter(self, node: onnx.NodeProto) -> bool:
        """Whether a node dequantizes stored integers."""
        return node.op_type == DEQUANTIZE and node.input[0] in self.stored

    def grid(self, node: onnx.NodeProto) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zero_point of a quantize or dequantize node."""
        scale = self.stored[node.input[1]]
        return scale, self.stored[node.input[2]] if len(node.input) > 2 else np.zeros_like(scale)

    def activation_grids(self) -> Iterator[onnx.NodeProto]:
        """Quantize and dequantize nodes of tensors between layers."""
        yield from (n for n in self.nodes if n.op_type in (QUANTIZE, DEQUANTIZE) and not self.is_parameter(n))

    def layers(self) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto]]:
        """Layers of integer weights, and what dequantizes these."""
        for node in self.nodes:
            if node.op_type in (*CONVOLUTIONS, *LINEAR) and (weight := self.parameter(node, 1)) is not None:
                yield node, weight

    def is_of_parameters(self, node: onnx.NodeProto) -> bool:
        """Whether a node gives stored values, dequantized or moved about."""
        return self.is_parameter(node) or (node.op_type in MOVES and all(map(self.is_of_parameters, self.reads(node))))

    def reads(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """What makes the values that a node reads; stored ones and the file's inputs are left out."""
        return [self.made[name] for name in node.input if name in self.made]

    def read_by(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        return [reader for name in node.output for reader in self.readers[name]]


def violations(model: onnx.ModelProto, target: Target) -> list[str]:
    """What a runtime may not take, or not fuse, in a file: a line for each node and rule, none where all is well."""
    view = _view(model)
    return [found for rule in RULES for found in rule(view, target)]


def _view(model: onnx.ModelProto) -> FileView:
    from onnx import numpy_helper

    graph, readers = model.graph, defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    made = {name: node for node in graph.node for name in node.output}
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    return FileView(list(graph.node), made, readers, stored, {v.name for v in graph.output}, opset_of(model))


def _opset(view: FileView, target: Target) -> Iterator[str]:
    """Scales per channel came with opset 13."""
    if view.opset < 13 and any(n.op_type == DEQUANTIZE for n in view.nodes):
        yield f"opset {view.opset} has no scale a channel; 13 is the first that has"


def _types(view: FileView, target: Target) -> Iterator[str]:
    """Activations are int8 or uint8, and may have a zero_point or not."""
    wanted = np.dtype(np.int8 if target.signed else np.uint8)
    for node in view.activation_grids():
        scale, zero_point = view.grid(node)
        if zero_point.dtype != wanted:
            yield f"{node.name} is of {zero_point.dtype}, not {wanted}"
        elif scale.size != 1:
            yield f"{node.name} has {scale.size} scales, not one"
        elif zero_point.any() and not target.zero_points:
            yield f"{node.name} has the zero_point {int(zero_point)}, not 0"


def _pairs(view: FileView, target: Target) -> Iterator[str]:
    """What is dequantized was quantized with the same scale and zero_point; nothing else reads the integers."""
    for node in view.activation_grids():
        others = [reader for reader in view.read_by(node) if reader.op_type != DEQUANTIZE]
        if node.op_type != QUANTIZE:
            continue
        if others and not target.integer_operators:
            yield f"{others[0].op_type} {others[0].name} reads the integers of {node.name}"
        same = all(_same(view.grid(node), view.grid(r)) for r in view.read_by(node) if r.op_type == DEQUANTIZE)
        if not same and not target.scales_input:
            yield f"{node.name} is dequantized with another scale or zero_point"


def _same(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def _weights(view: FileView, target: Target) -> Iterator[str]:
    """Integers in -127..127, zero_point 0, a scale for each output channel or one in all."""
    low, high = WEIGHT_RANGE
    for node, weight in view.layers():
        stored, (scale, zero_point) = view.stored[weight.input[0]], view.grid(weight)
        if stored.dtype != np.int8 and target.int4 and stored.dtype.name == "int4":
            continue
        if stored.dtype != np.int8:
            yield f"{node.name} has weights of {stored.dtype}, not int8"
        elif stored.min() < low or stored.max() > high:
            yield f"{node.name} has weights beyond {low}..{high}"
        elif zero_point.any():
            yield f"{node.name} has weights with a zero_point other than 0"
        if scale.size > 1 and node.op_type in LINEAR and "linear" in target.one_scale:
            yield f"{node.name} has {scale.size} scales of weights, not one"


def _biases(view: FileView, target: Target) -> Iterator[str]:
    """int32 in units of input scale * weight scale; or float."""
    for node, weight in view.layers():
        bias, read = view.parameter(node, 2), view.made.get(node.input[0])
        if len(node.input) < 3 or read is None or read.op_type != DEQUANTIZE:
            continue
        if not target.int32_bias:
            if bias is not None:
                yield f"{node.name} has a bias of integers, not float"
        elif bias is None:
            yield f"{node.name} has a bias of float, not int32"
        elif not np.allclose(view.grid(bias)[0], view.grid(read)[0] * view.grid(weight)[0], rtol=NEAR, atol=0):
            yield f"{node.name} has a bias whose scale is not input scale * weight scale"


def _inputs(view: FileView, target: Target) -> Iterator[str]:
    """A layer of integer weights reads dequantized values."""
    for node, _ in view.layers():
        read = view.made.get(node.input[0])
        if read is None or read.op_type != DEQUANTIZE:
            yield f"{node.name} has integer weights and reads floats"


def _activations(view: FileView, target: Target) -> Iterator[str]:
    """Nothing is rounded between a layer and the activation that clips it."""
    for node, _ in view.layers():
        for quantize in (n for n in view.read_by(node) if n.op_type == QUANTIZE):
            after = [r for dequantize in view.read_by(quantize) for r in view.read_by(dequantize)]
            if after and all(r.op_type in CLIPS for r in after):
                yield f"{node.name} is rounded in front of its {after[0].op_type}"


def _sums(view: FileView, target: Target) -> Iterator[str]:
    """Of a sum that a layer can be computed with, that layer is not rounded; the other operand is."""
    for node in view.nodes if target.fuses_sums else ():
        operands = view.reads(node)
        if node.op_type != "Add" or len(operands) != 2:
            continue
        rounded = [n for n in operands if n.op_type == DEQUANTIZE]
        if len(rounded) == 2 and any(_is_layer_alone(view, n) for n in rounded):
            yield f"{node.name} reads a layer that was rounded; only its other operand may be"
        elif not rounded:
            yield f"{node.name} reads no rounded operand; that which comes by must be"


def _is_layer_alone(view: FileView, dequantize: onnx.NodeProto) -> bool:
    """Whether values come straight from a layer and go nowhere else."""
    quantize = view.made[dequantize.input[0]]
    if view.grid(quantize)[1] == np.iinfo(view.grid(quantize)[1].dtype).min:  # an activation lies in between
        return False
    before = view.made.get(quantize.input[0])
    alone = all(len(view.read_by(n)) == 1 for n in (dequantize, quantize))
    return alone and before is not None and before.op_type in CONVOLUTIONS and len(view.read_by(before)) == 1


def _everything(view: FileView, target: Target) -> Iterator[str]:
    """All that is computed is rounded, behind an activation that clips it at the latest."""
    if target.rounded != "everything":
        return
    for node in view.nodes:
        read = [n for n in view.reads(node) if _is_float(view, n) and not view.is_of_parameters(n)]
        computes = node.op_type not in (QUANTIZE, DEQUANTIZE) and read
        if computes and not _is_rounded(view, node):
            yield f"{node.op_type} {node.name} gives floats that are not rounded"


def _is_rounded(view: FileView, node: onnx.NodeProto) -> bool:
    """Whether all that reads a node's values rounds them, as they are or clipped and moved about."""
    after = view.read_by(node)
    steps = [r for r in after if r.op_type != QUANTIZE]
    goes_out = any(name in view.outputs for name in node.output)
    return bool(after) and not goes_out and all(r.op_type in (*CLIPS, *MOVES) and _is_rounded(view, r) for r in steps)


def _is_float(view: FileView, node: onnx.NodeProto) -> bool:
    """Whether a node gives real values: not integers, nor sizes."""
    return node.op_type not in (QUANTIZE, "Shape") and not (
        node.op_type in (*CLIPS, *MOVES) and any(r.op_type in (QUANTIZE, "Shape") for r in view.reads(node))
    )


def _fixed_grids(view: FileView, target: Target) -> Iterator[str]:
    """Values that are only moved or averaged keep their grid; sigmoid, tanh and softmax have one of their own."""
    for node in view.nodes if target.fixed_grids else ():
        results = [n for n in view.read_by(node) if n.op_type == QUANTIZE]
        if node.op_type in ONE_GRID:
            read = [n for n in view.reads(node) if n.op_type == DEQUANTIZE and not view.is_parameter(n)]
            if any(not _same(view.grid(a), view.grid(b)) for a in read for b in (*read, *results)):
                yield f"{node.op_type} {node.name} reads and gives values of other grids"
        if node.op_type in OWN_GRID:
            own, zero_point = OWN_GRID[node.op_type]
            if any(not np.isclose(g[0], own, rtol=NEAR) or g[1] != zero_point for g in map(view.grid, results)):
                yield f"{node.op_type} {node.name} gives values of another grid than scale {own:g}, {zero_point}"


RULES: tuple[Callable[[FileView, Target], Iterator[str]], ...] = (
    _opset, _types, _pairs, _weights, _biases, _inputs, _activations, _sums, _everything, _fixed_grids,
)  # fmt: skip
