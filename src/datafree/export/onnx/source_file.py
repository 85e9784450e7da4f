"""The ONNX file that a network was read from, and which of its nodes a student still computes as they are."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from datafree import graph as g
from datafree.export.onnx.fusion import DEQUANTIZE, QUANTIZE, Fusion
from datafree.export.onnx.writer import ExportError, opset_of
from datafree.graph import trace
from datafree.models import QUANTIZING_OPSET, ModelError, OnnxNetwork, load_onnx, read_onnx

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class SourceFile:
    """A file, read again.

    path: where it lies.
    model: as `onnx` has it, without the tensors that it keeps in other files.
    captured: its network as it was before anything was done to it; nodes have the names they have in the student.
    tensors: names of values that are tensors; others are shapes and what is computed from them.
    network: as it was read, for its names: it has no weights. Nodes that are not read may follow it.
    """

    path: Path
    model: onnx.ModelProto
    captured: fx.GraphModule
    tensors: frozenset[str]
    network: OnnxNetwork

    @property
    def opset(self) -> int:
        return opset_of(self.model)

    @cached_property
    def nodes(self) -> dict[str, onnx.NodeProto]:
        """By each of their outputs."""
        return {name: node for node in self.model.graph.node for name in node.output}

    @cached_property
    def calls(self) -> dict[str, list[fx.Node]]:
        """The captured calls that compute the tensors of a node, by the node's first output."""
        found = defaultdict(list)
        for node in self.captured.graph.nodes:
            if (origin := g.note(node).origin) and g.note(node).size is None and node.op == "call_function":
                found[origin].append(node)
        return {origin: calls for origin, calls in found.items() if origin in self.tensors}

    @cached_property
    def _origins(self) -> dict[str, tuple[str, object]]:
        return {node.name: (origin, node.target) for origin, calls in self.calls.items() for node in calls}

    def origin(self, node: fx.Node) -> str:
        """First output of the file's node that a student's call is of; "" = of none."""
        origin, target = self._origins.get(node.name, ("", None))
        return origin if node.target is target else ""

    def kept(self, student: fx.GraphModule, fusion: Fusion) -> dict[str, list[fx.Node]]:
        """The student's calls of all nodes that mean the same in it: these are written as they stand in the file."""
        found = defaultdict(list)
        for node in student.graph.nodes:
            if origin := self.origin(node):
                found[origin].append(node)
        return {
            origin: calls
            for origin, calls in found.items()
            if self._is_same(calls, self.calls[origin], student)
            and len(outer(calls)) == len(self.tensor_inputs(origin))
            and (len(self.used_outputs(origin)) == 1 or calls[-1].target is operator.getitem)
            and not any(call in fusion.pads or call in fusion.bounds for call in calls)
        }

    def used_outputs(self, origin: str) -> list[str]:
        """A node's outputs that others read, or the file returns."""
        return [name for name in self.nodes[origin].output if name in self._read]

    @cached_property
    def _read(self) -> set[str]:
        graph = self.model.graph
        return {name for node in graph.node for name in node.input} | {value.name for value in graph.output}

    def tensor_inputs(self, origin: str) -> list[str]:
        """Names of the tensors a node reads that are no constants, each once."""
        return [*dict.fromkeys(name for name in self.nodes[origin].input if name in self.tensors)]

    def _is_same(self, mine: list[fx.Node], theirs: list[fx.Node], student: fx.GraphModule) -> bool:
        if [call.name for call in mine] != [call.name for call in theirs]:
            return False
        last = next(call for call in reversed(mine) if call.target is not operator.getitem)
        if any({*call.users} - {*mine} for call in mine if call.target is not operator.getitem and call is not last):
            return False
        return all(
            _equal(_leaves(student, a, mine), _leaves(self.captured, b, theirs))
            for a, b in zip(mine, theirs, strict=True)
        )


def outer(calls: Iterable[fx.Node]) -> list[fx.Node]:
    """Tensors that some calls read and do not make, constants aside, each once."""
    inner = {*calls}
    read = [x for call in calls for x in call.all_input_nodes if unrounded(x) not in inner]
    return [*dict.fromkeys(x for x in read if x.op != "get_attr" and not _is_size(x))]


def unrounded(node: fx.Node) -> fx.Node:
    """What was rounded to a grid, where this is the rounded value."""
    return g.operand(g.operand(node)) if node.target is DEQUANTIZE and g.operand(node).target is QUANTIZE else node


def _is_size(node: fx.Node) -> bool:
    return node.op == "call_function" and not g.shape(node) and node.target is not operator.getitem


def _leaves(graph: fx.GraphModule, call: fx.Node, inner: list[fx.Node]) -> list[Any]:
    """A call's arguments: values of constants, names of what is made inside, a mark for what is not."""

    def leaf(node: fx.Node) -> Any:
        if node.op == "get_attr":
            return g.get_tensor(graph, str(node.target))
        made = unrounded(node)
        return made.name if made in inner or _is_size(made) else "outer"

    return pytree.tree_leaves(map_arg((call.args, call.kwargs), leaf))


def _equal(a: list[Any], b: list[Any]) -> bool:
    def same(x: Any, y: Any) -> bool:
        if isinstance(x, Tensor) or isinstance(y, Tensor):
            return isinstance(x, Tensor) and isinstance(y, Tensor) and torch.equal(x, y)
        return x == y

    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))


def open_source(path: Path, teacher: fx.GraphModule, fingerprint: str) -> SourceFile:
    """Read the file that a teacher was made from once more.

    Args:
        fingerprint: of the network as it was captured then.

    Raises:
        ExportError: it is gone, it was changed, or its opset cannot say what is to be written.
    """
    shape = g.shape(g.placeholders(teacher)[0])
    try:
        network, example = load_onnx(path, shape)
        captured, model = trace(network, example), read_onnx(path)
    except ModelError as error:
        raise ExportError(f"{error}; the run came from it: put it back, or write a graph of its own") from None
    if g.fingerprint(captured) != fingerprint:
        raise ExportError(f"{path} was changed since, or is another one; give that one, or write a graph of its own")
    with torch.no_grad():
        values = network.values(*(example if isinstance(example, tuple) else (example,)))
    tensors = {name for name, value in values.items() if isinstance(value, Tensor)}
    tensors |= {g.note(node).origin for node in captured.graph.nodes if node.op == "call_function" and g.shape(node)}
    found = SourceFile(path, model, captured, frozenset(tensors - {""}), network.to("meta"))
    if found.opset < QUANTIZING_OPSET:
        raise ExportError(
            f"{path} is of opset {found.opset} and cannot be brought to {QUANTIZING_OPSET}, the first with a scale for "
            "each channel; write a graph of its own"
        )
    return found
