"""An ONNX file as an nn.Module: PyTorch runs its nodes one after another, so it is captured like any other."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.fx.traceback import annotate

from datafree.models.onnx_file.bounds import MOST_VALUES, MOST_WHERE_ASKED, at_most
from datafree.models.onnx_file.float_nodes import as_tensor, batch_refusal, run_node, sides_of
from datafree.models.onnx_file.graph import read_graph
from datafree.models.onnx_file.inputs import example_inputs, with_channels_first
from datafree.models.onnx_file.operators import OPERATORS
from datafree.models.onnx_file.records import Graph, Input, Node
from datafree.models.onnx_file.shapes import SHAPE_OPERATORS, checked, shape_values
from datafree.models.onnx_file.tail import without_tail
from datafree.models.state_dict import ModelError
from datafree.records import ORIGIN

WEIGHTS = {  # operators that own their constants: what each input is called
    "Conv": ("", "weight", "bias"),
    "ConvTranspose": ("", "weight", "bias"),
    "Gemm": ("", "weight", "bias"),
    "MatMul": ("", "weight", "bias"),
    "BatchNormalization": ("", "weight", "bias", "running_mean", "running_var"),
    "InstanceNormalization": ("", "weight", "bias"),
    "LayerNormalization": ("", "weight", "bias"),
    "PRelu": ("", "weight"),
}


ARGUMENTS = ("Resize", "Upsample", "Clip", "Pad")
"""Operators whose floats say what to do and are no tensors that anything is computed with."""


def load_onnx(
    path: str | Path, input_shape: tuple[int, ...] | None = None
) -> tuple[OnnxNetwork, Float[Tensor, "1 ..."] | tuple[Tensor, ...]]:
    """Read an ONNX file as a network, and make an example input of zeros: a tuple where it has several inputs.

    Args:
        path: of the file; opsets 7 to 22. Nodes that are not read may follow the last layer: the network ends in front.
        input_shape: (N, C, H, W) to make inputs at, where the file leaves sides open.

    A file whose images have their channels last, and are transposed first of all, is a network of (N, C, H, W) here.

    Raises:
        ModelError: the file is damaged, quantized already, or holds what is not read; the input's shape is not known.
    """
    network, example = _read(Path(path), input_shape)
    try:
        with torch.no_grad(), at_most(MOST_WHERE_ASKED if input_shape else MOST_VALUES):
            network(*example)
            network.measure(*example)
    except ModelError as error:
        named = str(error).startswith(str(path))
        raise error if named else ModelError(f"{path}: {error}") from None
    except Exception as error:  # of PyTorch's operators, which raise types of their own
        reason = " ".join(str(error).split())[:200]
        sizes = " and ".join(str(tuple(x.shape)) for x in example)
        raise ModelError(f"{path} does not run at {sizes}: {reason}; give another input shape") from error
    return network, example[0] if len(example) == 1 else example


def _read(path: Path, input_shape: tuple[int, ...] | None) -> tuple[OnnxNetwork, tuple[Tensor, ...]]:
    try:
        graph = with_channels_first(without_tail(read_graph(path), path))
        example = example_inputs(graph, input_shape, path)
        return OnnxNetwork(graph, path).eval(), example
    except ModelError:
        raise
    except Exception as error:  # what an altered file leads to, in any type
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(f"{path} is damaged, or made in a way that is not read ({reason}); export it anew") from error


class OnnxNetwork(nn.Module):
    """The network of an ONNX file, at `source`. Layers have the names of their weights in it."""

    def __init__(self, graph: Graph, source: Path | None = None) -> None:
        super().__init__()
        self.source = source
        unknown = sorted(
            {
                str(n)
                for n in graph.nodes
                if n.operator not in OPERATORS and n.operator not in SHAPE_OPERATORS and not n.runs_as_it_is
            }
        )
        if unknown:
            more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
            raise ModelError(f"{', '.join(unknown[:3])}{more}: not read; allowed are {', '.join(sorted(OPERATORS))}")
        self._graph = graph
        self._owned: dict[tuple[int, int], str] = {}  # (node, input) -> parameter
        self._kept: dict[str, str] = {}  # other tensors
        self._held: dict[str, tuple[str, ...]] = {}  # constants by their path
        self._sides: dict[str, str] = {}  # of what nodes that run as they are give, by their first output
        shapes = shape_values(graph.nodes, graph.constants)
        for number, node in enumerate(graph.nodes):
            if not shapes & {*node.outputs}:
                self._own(number, node)
        self._graph = replace(graph, constants=self._others(graph))

    def forward(self, x: Tensor, *others: Tensor) -> Tensor | tuple[Tensor, ...]:
        values = self.values(x, *others)
        answers = tuple(values[name] for name in self._graph.outputs)
        return answers[0] if len(answers) == 1 else answers

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names in the file of what the network returns: its outputs, or what the part behind it reads."""
        return self._graph.outputs

    @property
    def inputs(self) -> tuple[Input, ...]:
        return self._graph.inputs

    def as_in_file(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Inputs of the network as the file takes them."""
        pairs = zip(self.inputs, inputs, strict=True)
        return tuple(x.permute(0, 2, 3, 1).contiguous() if given.transposed else x for given, x in pairs)

    @property
    def tail(self) -> str:
        """The first node of the file that is not read and follows the network; "" = none."""
        return str(self._graph.tail[0]) if self._graph.tail else ""

    def values(self, *inputs: Tensor) -> dict[str, Any]:
        """All that is computed, by name: tensors, and arrays of integers where it is a shape."""
        names = (given.name for given in self._graph.inputs)
        values: dict[str, Any] = dict(zip(names, inputs, strict=True))
        for number, node in enumerate(self._graph.nodes):
            with annotate({ORIGIN: node.outputs[0]}):
                given = [self._value(number, i, name, values) for i, name in enumerate(node.inputs)]
                if node.runs_as_it_is:
                    found = run_node(node, given, self._graph.opset, self._sides.get(node.outputs[0], ""))
                else:
                    found = _run(node, given)
            values.update(zip(node.outputs, found if isinstance(found, tuple | list) else (found,), strict=False))
        return values

    def measure(self, *example: Tensor) -> None:
        """Learn the sizes of what nodes give that run as they are, for any batch, from one of two and one of three.

        Raises:
            ModelError: a size hangs on values or on the batch in another way than in proportion; names the node.
        """
        nodes = [(number, node) for number, node in enumerate(self._graph.nodes) if node.runs_as_it_is]
        if not nodes:
            return
        rng = torch.Generator().manual_seed(0)
        runs = [self.values(*(torch.randn(n, *x.shape[1:], generator=rng) for x in example)) for n in (2, 3)]
        for number, node in nodes:
            two, three = ([self._value(number, i, name, v) for i, name in enumerate(node.inputs) if name] for v in runs)
            for a, b in zip(two, three, strict=True):
                if isinstance(a, np.ndarray) and a.shape == b.shape and (a != b).any():
                    raise batch_refusal(node)
            given = [[as_tensor(value, node) for value in values] for values in (two, three)]
            found = [[values[name] for name in node.outputs] for values in runs]
            self._sides[node.outputs[0]] = sides_of(node, given, found)

    def _value(self, number: int, place: int, name: str, values: dict[str, Any]) -> Any:
        if not name:
            return None
        if name in values:
            return values[name]
        if path := self._owned.get((number, place)) or self._kept.get(name):
            return self.get_parameter(path) if (number, place) in self._owned else self.get_buffer(path)
        return self._graph.constants[name]

    def _own(self, number: int, node: Node) -> None:
        """Register the constants that a node reads: those of layers as parameters, other floats as buffers."""
        names = WEIGHTS.get(node.operator, ())
        known = [i for i, name in enumerate(node.inputs) if name in self._graph.constants and i > 0]
        owner = self._owner(node, tuple(node.inputs[i] for i in known)) if known and names else ""
        for i, name in enumerate(node.inputs):
            value = self._graph.constants.get(name)
            if value is None or value.dtype != np.float32:
                continue
            if i < len(names) and names[i]:
                self._owned[number, i] = f"{owner}.{names[i]}"
                self._register(f"{owner}.{names[i]}", value)
            elif value.ndim and name not in self._kept and node.operator not in ARGUMENTS:
                self._kept[name] = self._free(f"constants.{_clean(name).replace('.', '_')}", (name,))
                self._register(self._kept[name], value, is_buffer=True)

    def _owner(self, node: Node, constants: tuple[str, ...]) -> str:
        """The path of a node's weights, which it shares with nodes of the same weights alone."""
        return self._free(_path_of(constants[0], node), constants)

    def _free(self, path: str, constants: tuple[str, ...]) -> str:
        """The path, or the first of path_1, path_2, ... under which no other constants are."""
        numbers = (f"{path}_{i}" if i else path for i in itertools.count())
        return next(p for p in numbers if self._held.setdefault(p, constants) == constants)

    def _others(self, graph: Graph) -> dict[str, np.ndarray]:
        """Constants that are not all held by parameters and buffers; these are there once."""
        read = {
            name
            for number, node in enumerate(graph.nodes)
            for i, name in enumerate(node.inputs)
            if (number, i) not in self._owned and name not in self._kept
        }
        return {name: value for name, value in graph.constants.items() if name in read}

    def _register(self, path: str, value: np.ndarray, *, is_buffer: bool = False) -> None:
        *parents, last = path.split(".")
        module: nn.Module = self
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, nn.Module())
            module = module.get_submodule(parent)
        tensor = torch.from_numpy(np.array(value, copy=True))
        if is_buffer:
            module.register_buffer(last, tensor)
        else:
            module.register_parameter(last, nn.Parameter(tensor, requires_grad=False))


def _run(node: Node, values: list[Any]) -> Any:
    is_shape = node.operator in SHAPE_OPERATORS and not any(isinstance(v, Tensor) for v in values)
    if is_shape:
        return checked(node, SHAPE_OPERATORS[node.operator](node, *values))
    return OPERATORS[node.operator](node, *values)


def _path_of(weight: str, node: Node) -> str:
    """The layer's name: its weight's without the last part, or the node's where weights have no names of their own."""
    stem = re.sub(r"\.(weight|bias|kernel|running_mean|running_var)$", "", weight)
    is_named = stem != weight and "::" not in weight
    return _clean(stem if is_named else _scope(node) or node.outputs[0])


def _scope(node: Node) -> str:
    """The module of a node called /layer1/layer1.0/conv1/Conv, as PyTorch names it: layer1.0.conv1."""
    parts: list[str] = []
    for part in node.name.strip("/").split("/"):
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(part)
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1].startswith(node.operator) else parts)


def _clean(name: str) -> str:
    """A path that a module may have: letters, digits, dots."""
    parts = [re.sub(r"\W", "_", part) for part in re.split(r"[./]", name)]
    parts = [part for part in parts if part] or ["layer"]
    return ".".join([f"{parts[0]}_" if hasattr(nn.Module, parts[0]) else parts[0], *parts[1:]])
