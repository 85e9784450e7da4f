"""The ATen graph of a student, node by node, as an ONNX model: integers stay integers, names stay the user's."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from datafree import graph as g
from datafree.export.onnx import qdq
from datafree.export.onnx.float_nodes import FLOAT_NODES
from datafree.export.onnx.fusion import DEQUANTIZE, DEQUANTIZE_ROWS, QUANTIZE, fuse
from datafree.export.onnx.operators import OPERATORS
from datafree.export.onnx.shape_operators import MOVES
from datafree.export.onnx.writer import IR_VERSIONS, Call, Size, Writer
from datafree.graph import aten
from datafree.recipe import TARGETS, USUAL, Target
from datafree.solve import quantized_at

if TYPE_CHECKING:
    import onnx

TABLE: dict[object, Callable[..., Any]] = OPERATORS | MOVES | FLOAT_NODES


def translate(
    graph: fx.GraphModule, *, opset: int, int4: bool = False, target: Target = TARGETS[USUAL]
) -> onnx.ModelProto:
    """Write an ATen graph as an ONNX model whose batch dimension is open.

    Layers, their weights and biases have the user's names (`layer1.0.conv1`, `layer1.0.conv1.weight`); inputs those
    of `forward`; outputs are `output`, or `output_0` or a dictionary's keys where there are several.

    Args:
        graph: teacher or student, in PT2E reference form or float.
        opset: 13 or 21.
        int4: store weights as ONNX INT4 where they fit.
        target: the runtime the file is for.

    Raises:
        ExportError: an operator that cannot be written, or not in this opset; names layer, operator and what to do.
    """
    walk = Walk(graph, Writer(opset), int4, target)
    names = _output_names(graph)
    inputs = [walk.writer.unique(str(n.target)) for n in g.placeholders(graph)]
    outputs = [walk.writer.unique(name) for name in names]
    walk.values.update(zip(g.placeholders(graph), inputs, strict=True))
    for node in graph.graph.nodes:
        if node.op == "call_function":
            walk.values[node] = walk.call(node)
    found = returned(graph)
    values = [walk.value(node) for node in found]
    for node, value, name in zip(found, values, outputs, strict=True):
        walk.finish(node, name, again=values.count(value) > 1)
    return _model(
        walk.writer, dict(zip(inputs, g.placeholders(graph), strict=True)), dict(zip(outputs, found, strict=True))
    )


def returned(graph: fx.GraphModule) -> list[fx.Node]:
    """What the graph returns, flattened, one entry for each output."""
    node = next(n for n in reversed(graph.graph.nodes) if n.op == "output")
    return [n for n in pytree.tree_leaves(node.args[0]) if isinstance(n, fx.Node)]


def _output_names(graph: fx.GraphModule) -> list[str]:
    """`output` of a single tensor, the keys of a dictionary, else `output_0`, `output_1`, ..."""
    spec = g.pytree_of(graph).out_spec
    assert spec is not None, "capture writes it down"
    tree, count = pytree.tree_unflatten(list(range(spec.num_leaves)), spec), len(returned(graph))
    if isinstance(tree, dict) and len(tree) == count and all(isinstance(leaf, int) for leaf in tree.values()):
        return [str(key) for key in tree]
    return ["output"] if count == 1 else [f"output_{i}" for i in range(count)]


class Walk:
    """The names that the graph's nodes have in the file so far."""

    def __init__(self, graph: fx.GraphModule, writer: Writer, int4: bool, target: Target) -> None:
        self.graph, self.writer, self.int4, self.target = graph, writer, int4, target
        self.fusion = fuse(graph, target)
        self.values: dict[fx.Node, Any] = {}
        self.names: dict[fx.Node, str] = {}  # of nodes whose value has another than its layer's, or its own

    def call(self, node: fx.Node) -> Any:
        """Write one call; returns the name(s) of its value, or that it is a size of the batch."""
        if node.target is operator.getitem and not isinstance(self.values[g.operand(node)], Size):
            index: Any = node.args[1]
            return self.values[g.operand(node)][index]
        if node.target in (QUANTIZE, DEQUANTIZE, DEQUANTIZE_ROWS):
            return self._parameter(node) if g.operand(node).op == "get_attr" else self._grid(node)
        if node in self.fusion.pads or node in self.fusion.bounds:
            return self.value(g.operand(node))
        given: list[Any] = [map_arg(a, self.value) for a in _bound(node)]
        call = Call(self.writer, node, self.names.get(node) or g.note(node).layer or node.name)
        if node.target is aten.sym_size.int or (given and all(isinstance(a, Size | int) for a in given)):
            return Size.OPEN
        if node.target not in TABLE:
            call.refuse("no ONNX operator is known for it")
        return TABLE[node.target](call, *given)

    def value(self, node: fx.Node) -> Any:
        """The name of a node's value; a tensor of the model is stored when it is first read."""
        if node not in self.values:
            path = str(node.target)
            self.values[node] = self.writer.tensor(path, g.get_tensor(self.graph, path).detach().numpy())
        return self.values[node]

    def _grid(self, node: fx.Node) -> str:
        """A quantize or dequantize node of a tensor between layers."""
        source = g.operand(node)
        if source in self.fusion.pads:
            return self._pad(node, source)
        name = self.value(source)
        if node.target is QUANTIZE:
            call = Call(self.writer, node, f"{name.removesuffix('_dequantized')}_quantized")
            return qdq.quantize(call, name, self.fusion.bounds.get(source), scales_input=self.target.scales_input)
        base = name.removesuffix(".clipped").removesuffix("_quantized")
        return qdq.dequantize(Call(self.writer, node, f"{base}_dequantized"), name)

    def _pad(self, node: fx.Node, padding: fx.Node) -> str:
        """A padding that is written on the integers: those it came from, or the same ones moved about since."""
        before, origin = g.operand(padding), quantized_at(padding)
        q = self.value(g.operand(origin))
        if before is not origin:
            moved = Call(self.writer, before, f"{before.name}_quantized")
            q = qdq.requantize(moved, self.value(before), q)
        return qdq.pad(Call(self.writer, node, f"{padding.name}_quantized"), q)

    def _parameter(self, node: fx.Node) -> str:
        """A dequantize node of stored integers."""
        args: Any = node.args
        path, scale = str(g.operand(node).target), args[1]
        if isinstance(scale, fx.Node):
            scale = g.get_tensor(self.graph, str(scale.target)).numpy()
        scale = np.asarray(scale * self.fusion.factors.get(node, 1), np.float32)
        stored = g.get_tensor(self.graph, path).numpy()
        call = Call(self.writer, node, f"{path}_dequantized")
        if stored.dtype == np.int32 and not self.target.int32_bias:
            return self.writer.tensor(path, stored.astype(np.float32) * scale)
        if node in self.fusion.float_parameters and not (self.int4 and stored.dtype == np.int8):
            return qdq.float_parameter(call, path, stored, scale)
        return qdq.parameter(call, path, stored, scale, int4=self.int4)

    def finish(self, node: fx.Node, name: str, *, again: bool) -> None:
        """Call a returned value by the output's name."""
        value = self.value(node)
        if again or all(value not in made.output for made in self.writer.nodes):
            self.writer.nodes.append(_identity(value, name))
        else:
            self.writer.rename(value, name)
            self.values = {n: name if v == value else v for n, v in self.values.items()}


def _identity(value: str, name: str) -> onnx.NodeProto:
    from onnx import helper

    return helper.make_node("Identity", [value], [name], name=name)


def _bound(node: fx.Node) -> list[Any]:
    """A call's arguments in the order of its schema, defaults filled in."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return list(node.args)
    rest = node.target._schema.arguments[len(node.args) :]
    return [*node.args, *(node.kwargs.get(a.name, a.default_value) for a in rest)]


def _model(writer: Writer, inputs: dict[str, fx.Node], outputs: dict[str, fx.Node]) -> onnx.ModelProto:
    from onnx import helper

    def described(name: str, node: fx.Node) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, 1, ["batch", *g.shape(node)[1:]])

    made = helper.make_graph(
        writer.nodes,
        "student",
        [described(*item) for item in inputs.items()],
        [described(*item) for item in outputs.items()],
        list(writer.initializers.values()),
    )
    opset = helper.make_opsetid("", writer.opset)
    return helper.make_model(
        made, opset_imports=[opset], ir_version=IR_VERSIONS[writer.opset], producer_name="datafree"
    )
