"""A student written into the ONNX file that its network was read from: all that was not compressed stays as it was."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Any

from torch import fx

from datafree import graph as g
from datafree.export.onnx.source_file import SourceFile, outer, unrounded
from datafree.export.onnx.translate import Walk, returned
from datafree.export.onnx.writer import Writer
from datafree.models import read_weights_
from datafree.recipe import TARGETS, USUAL, Target

if TYPE_CHECKING:
    import onnx


def write_back(
    student: fx.GraphModule, source: SourceFile, *, int4: bool = False, target: Target = TARGETS[USUAL]
) -> onnx.ModelProto:
    """The source's model with the student's layers in it.

    Nodes that mean the same in the student are copied; they read quantized values where the student's do. What computes
    shapes stays, so that open sizes stay open. Layers, and activations that move into their integers, are written anew
    under the names of the values they give. Inputs, outputs, metadata and all other names are the file's.

    Raises:
        ExportError: an operator that cannot be written, or not in the file's opset.
    """
    walk = Walk(student, Writer(source.opset, has_open_sizes=True), int4, target)
    kept = source.kept(student, walk.fusion)
    walk.writer.reserve(_names(source, kept))
    inputs = [given.name for given in source.network.inputs]
    walk.values.update(zip(g.placeholders(student), inputs, strict=True))
    written: set[str] = set()
    last = {source.origin(n): n for n in student.graph.nodes}
    for node in student.graph.nodes:
        origin = source.origin(node)
        if origin in written:
            _pass_on(walk, source, node)
        if node.op != "call_function" or origin in written:
            continue
        if origin in kept:
            _copy(walk, source, kept[origin], origin)
            written.add(origin)
            continue
        if origin and last[origin] is node:
            walk.names[node] = origin
            walk.writer.release(origin)
        walk.values[node] = walk.call(node)
    return _model(walk, source, _finish(walk, source))


def _names(source: SourceFile, kept: Iterable[str]) -> set[str]:
    """Names of the file's values, and of the constants that stay."""
    graph = source.model.graph
    rewritten = source.calls.keys() - {*kept}
    stay = [node for node in graph.node if node.output[0] not in rewritten]
    stored = {tensor.name for tensor in graph.initializer}
    made = {v.name for v in graph.input} - stored | {name for node in graph.node for name in node.output}
    return made | {name for node in stay for name in node.input}


def _copy(walk: Walk, source: SourceFile, calls: list[fx.Node], origin: str) -> None:
    """Append a node of the file that reads what the student's calls read."""
    node = _clone(source.nodes[origin])
    names = dict(zip(source.tensor_inputs(origin), map(walk.value, outer(calls)), strict=True))
    node.input[:] = [names.get(name, name) for name in node.input]
    walk.writer.nodes.append(node)
    used = source.used_outputs(origin)
    for call in calls:
        index: Any = call.args[1] if call.target is operator.getitem else None
        if len(used) == 1:
            walk.values[call] = used[0]
        else:
            walk.values[call] = list(node.output) if index is None else node.output[index]


def _pass_on(walk: Walk, source: SourceFile, call: fx.Node) -> None:
    """A move inside of a copied node, behind a rounding that is written on the node's output: it is made already."""
    read = call.args[0] if call.args else None
    if not isinstance(read, fx.Node) or call.target is operator.getitem:
        return
    is_rounded = unrounded(read) is not read and source.origin(unrounded(read)) == source.origin(call)
    if is_rounded or (source.origin(read) == source.origin(call) and walk.values[read] != walk.values[call]):
        walk.values[call] = walk.values[read]


def _clone(proto: Any) -> Any:
    copy = type(proto)()
    copy.CopyFrom(proto)
    return copy


def _finish(walk: Walk, source: SourceFile) -> dict[str, str]:
    """Give returned values the names of the file's outputs; returns what was renamed."""
    found = returned(walk.graph)
    values, renamed = [walk.value(node) for node in found], {}
    for node, value, output in zip(found, values, source.network.outputs, strict=True):
        if value != output:
            if any(output in made.output for made in walk.writer.nodes):  # a layer, whose rounded value is returned
                walk.writer.rename(output, walk.writer.unique(f"{output}_float"))
            walk.writer.release(output)
            walk.finish(node, output, again=values.count(value) > 1)
            renamed[value] = output
    return renamed


def _model(walk: Walk, source: SourceFile, renamed: dict[str, str]) -> onnx.ModelProto:
    model, writer = _clone(source.model), walk.writer
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = _complete(writer, source, renamed)
    _label(nodes, source)
    read = {name for node in nodes for name in node.input} | {v.name for v in model.graph.output}
    kept = [stored[name] for name in stored if name in read and name not in writer.initializers]
    for field, values in {
        "node": _in_order(nodes),
        "initializer": [*kept, *writer.initializers.values()],
        "input": [v for v in model.graph.input if v.name not in stored or v.name in {t.name for t in kept}],
        "value_info": _descriptions(walk, source, nodes),
    }.items():
        copies = [_clone(value) for value in values]
        del getattr(model.graph, field)[:]
        getattr(model.graph, field).extend(copies)
    read_weights_(model.graph.initializer, source.path)
    return model


def _complete(writer: Writer, source: SourceFile, renamed: dict[str, str]) -> list[onnx.NodeProto]:
    """The nodes so far, those behind the network, and those that compute the shapes and constants that these read."""
    nodes = list(writer.nodes)
    behind = [v.name for v in source.model.graph.output if v.name not in source.network.outputs]
    nodes += [_clone(source.nodes[name]) for name in dict.fromkeys(source.nodes[v].output[0] for v in behind)]
    made = {name for node in nodes for name in node.output} | {v.name for v in source.model.graph.input}
    made |= {tensor.name for tensor in source.model.graph.initializer} | {*writer.initializers, ""}
    for node in nodes:  # grows
        for place, name in enumerate(node.input):
            while name not in made and (name in renamed or name in source.calls):
                # gone, as a BatchNorm in front of a Shape; what it was made from has the same size
                name = renamed.get(name) or source.nodes[name].input[0]
            node.input[place] = name
            if name not in made:
                nodes.append(_clone(source.nodes[name]))
                made.update(nodes[-1].output)
    return nodes


def _label(nodes: list[onnx.NodeProto], source: SourceFile) -> None:
    """Names and descriptions of the file's nodes, for what gives the same values now."""
    for node in nodes:
        if (was := source.nodes.get(node.output[0])) is not None:
            node.name, node.doc_string = was.name, was.doc_string


def _in_order(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Every node behind those it reads."""
    maker = {name: number for number, node in enumerate(nodes) for name in node.output}
    reads = {i: [maker[name] for name in node.input if name in maker] for i, node in enumerate(nodes)}
    return [nodes[i] for i in TopologicalSorter(reads).static_order()]


def _descriptions(walk: Walk, source: SourceFile, nodes: list[onnx.NodeProto]) -> list[onnx.ValueInfoProto]:
    """Types and shapes of values that are still there and still have them."""
    made = {name for node in nodes for name in node.output}
    shapes = {origin: g.shape(calls[-1]) for origin, calls in source.calls.items()}
    mine = {source.origin(node): g.shape(node) for node in walk.graph.graph.nodes}
    is_same: Callable[[str], bool] = lambda name: mine.get(name) in (None, shapes.get(name))  # noqa: E731
    return [v for v in source.model.graph.value_info if v.name in made and is_same(v.name)]
