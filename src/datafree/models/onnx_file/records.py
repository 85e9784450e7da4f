"""What an ONNX file holds, as plain records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that are layers where their second input is a constant."""


@dataclass(frozen=True)
class Node:
    """One call: an operator, the names of its inputs ("" = left out) and outputs, its attributes.

    An operator of another domain than ONNX's own is called DOMAIN.NAME. `covers` are outputs of nodes of the file that
    were joined into this one and are computed no more: of a MatMul and the Add behind it, that of the MatMul; the
    constants of this node are those of all. `inner` are the operators of networks that it holds (If, Loop, Scan); what
    these read of the network around them is in `inputs`. `proto` is the node as the file has it, where the table of
    operators has no row for it; it `runs_as_it_is` where layers follow it.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(hash=False)
    covers: tuple[str, ...] = ()
    inner: tuple[str, ...] | None = None
    proto: bytes = field(default=b"", hash=False, repr=False)
    runs_as_it_is: bool = False

    def __str__(self) -> str:
        return f"{self.operator} ({self.name or self.outputs[0]})"


@dataclass(frozen=True)
class Input:
    """An input of the network; None = a side that may be any.

    transposed: the file's input (N, H, W, C), where the network begins behind the Transpose of it; "" = it is not.
    """

    name: str
    sides: tuple[int | None, ...]
    dtype: str = "float32"
    transposed: str = ""


@dataclass(frozen=True)
class Graph:
    """What an ONNX file holds. Constants are of nodes too, and of what can be computed from constants alone.

    `tail` is what comes behind the network and is not read (non-maximum suppression, loops): it stays in the file as
    it is, and `outputs` are then what it reads, behind the file's own that are computed in front of it.
    """

    opset: int
    nodes: tuple[Node, ...]
    constants: dict[str, np.ndarray]
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    metadata: dict[str, str]
    tail: tuple[Node, ...] = ()


def needed(nodes: Sequence[Node], outputs: Sequence[str]) -> tuple[Node, ...]:
    """Nodes that the outputs hang on."""
    wanted, found = {*outputs}, []
    for node in reversed(nodes):
        if wanted & {*node.outputs}:
            wanted |= {*node.inputs}
            found.append(node)
    return tuple(reversed(found))
