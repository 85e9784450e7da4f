"""An ONNX graph while it is written: nodes, stored tensors, and a name of its own for every value."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from torch import fx

from datafree import graph as g

if TYPE_CHECKING:
    import onnx

IR_VERSIONS = {13: 7, 21: 10}  # opset -> version of the file format that came with it
Attribute = int | float | str | list[int]


class Size(Enum):
    """A size that is known only when the network runs: the batch."""

    OPEN = "open"


class ExportError(ValueError):
    """A network that cannot be written to a file, or a file that does not do what it should."""


class Writer:
    """Nodes in execution order and initializers by name, for one opset.

    has_open_sizes: more of a shape than the batch may be another than when it was captured.
    """

    def __init__(self, opset: int, *, has_open_sizes: bool = False) -> None:
        self.opset, self.has_open_sizes = opset, has_open_sizes
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.grids: dict[str, tuple[str, str]] = {}  # names of scale and zero_point, by the quantized value's name
        self._taken: set[str] = set()
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def unique(self, name: str) -> str:
        """`name`, or with a number behind it where another value has it."""
        found, count = name, 0
        while found in self._taken:
            count += 1
            found = f"{name}_{count}"
        self._taken.add(found)
        return found

    def reserve(self, names: Iterable[str]) -> None:
        """Keep names free for values that are written as they are."""
        self._taken.update(names)

    def release(self, name: str) -> None:
        """Let the next value that asks for a reserved name have it."""
        self._taken.discard(name)

    def tensor(self, name: str, value: np.ndarray) -> str:
        """Store a tensor under its own name."""
        from onnx import numpy_helper

        name = self.unique(name)
        self.initializers[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def int4(self, name: str, value: np.ndarray) -> str:
        """Store integers -8..7 in four bits each, the first one in the lower half of its byte."""
        from onnx import TensorProto, helper

        name, flat = self.unique(name), value.astype(np.int8).ravel() & 0xF
        low, high = np.pad(flat, (0, flat.size % 2)).reshape(-1, 2).astype(np.uint8).T
        packed = (low | high << 4).tobytes()
        self.initializers[name] = helper.make_tensor(name, TensorProto.INT4, value.shape, packed, raw=True)
        return name

    def constant(self, value: np.ndarray) -> str:
        """Store a tensor that has no name in the model; equal ones are stored once."""
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            self._constants[key] = self.tensor(f"constant_{len(self._constants)}", value)
        return self._constants[key]

    def emit(
        self, kind: str, inputs: list[str], name: str, attributes: dict[str, Attribute], num_outputs: int = 1
    ) -> list[str]:
        """Append a node; its first output has the node's name."""
        from onnx import helper

        name = self.unique(name)
        outputs = [name, *(self.unique(f"{name}_output_{i}") for i in range(1, num_outputs))]
        node = helper.make_node(kind, inputs, outputs, name=name)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in sorted(attributes.items()))
        self.nodes.append(node)
        return outputs

    def rename(self, old: str, new: str) -> None:
        """Give a node's output another name everywhere."""
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [new if name == old else name for name in names]


def opset_of(model: onnx.ModelProto) -> int:
    """Of ONNX's own operators; 0 = it uses none."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def remove_unread(graph: onnx.GraphProto) -> None:
    """Take out nodes and stored tensors that nothing reads: ONNX Runtime runs such nodes all the same."""
    used = {value.name for value in graph.output}
    for node in reversed(list(graph.node)):
        if used.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            used.update(node.input)
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)


@dataclass(frozen=True)
class Call:
    """One call of the ATen graph that is being written; `name` is for the node that gives its value."""

    writer: Writer
    node: fx.Node
    name: str

    def emit(self, kind: str, *inputs: str | None, step: str = "", **attributes: Attribute | Size) -> str:
        """Append a node and return its output; None = an input left out. `step` sets inner nodes apart.

        Raises:
            ExportError: an attribute is a size of the batch, which only inputs may be.
        """
        known = {name: value for name, value in attributes.items() if not isinstance(value, Size)}
        if len(known) < len(attributes):
            self.refuse("what it does depends on the size of the batch")
        given = ["" if x is None else x for x in inputs]
        while given and not given[-1]:
            given.pop()
        return self.writer.emit(kind, given, f"{self.name}.{step}" if step else self.name, known)[0]

    def floats(self, value: int | float | np.ndarray) -> str:
        return self.writer.constant(np.asarray(value, np.float32))

    def ints(self, value: int | list[int]) -> str:
        return self.writer.constant(np.asarray(value, np.int64))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the value this call gives, for a batch of two."""
        return g.shape(self.node)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of the call's first argument, for a batch of two."""
        return g.shape(g.operand(self.node))

    def since(self, opset: int, operator: str) -> None:
        """Refuse what this opset cannot say.

        Raises:
            ExportError: names layer, operator, opset, and the opset that has it.
        """
        if self.writer.opset < opset:
            raise ExportError(
                f"{self.name} ({self.node.target}) needs ONNX {operator}, which opset {self.writer.opset} lacks; "
                f"it came with opset {opset}: export with opset=21"
            )

    def refuse(self, why: str) -> NoReturn:
        """Raise the one error of operators that cannot be written."""
        raise ExportError(
            f"{self.name} ({self.node.target}) cannot be written to ONNX opset {self.writer.opset}: {why}; "
            "replace it in the model's forward, or give run.student to torch.onnx.export"
        )
