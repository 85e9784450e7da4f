"""What this package writes on the nodes of a graph: one frozen record each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import fx

_KEY = "datafree"  # in `node.meta`


@dataclass(frozen=True)
class Annotation:
    """What is known of a node.

    shape: of its tensor, for a batch of two; () where it yields none.
    size: its value for a batch of two, where it is a symbolic integer.
    path: of the module it was called in.
    layer: name of the layer that it computes.
    v_o, v_i: name of the layer whose outputs, or inputs, it multiplies.
    affine: path of the BatchNorm that it is a part of, where that could not be folded.
    grid: name of the tensor and bits that a quantize node rounds to.
    origin: the first output of the ONNX node that it is a part of, where the network was read from a file.
    """

    shape: tuple[int, ...] = ()
    size: int | None = None
    path: str = ""
    layer: str | None = None
    v_o: str | None = None
    v_i: str | None = None
    affine: str | None = None
    grid: tuple[str, int] | None = None
    origin: str = ""


NOTHING = Annotation()


def note(node: fx.Node) -> Annotation:
    """What is written on a node."""
    return node.meta.get(_KEY, NOTHING)


def annotate(node: fx.Node, **changes: Any) -> None:
    """Write some fields anew; the others stay."""
    node.meta[_KEY] = replace(note(node), **changes)


def shape(node: fx.Node) -> tuple[int, ...]:
    """Shape of a node's tensor for a batch of two (the batch size every graph is captured with)."""
    return note(node).shape


def layer_name(node: fx.Node) -> str:
    """Of a node that computes a layer."""
    name = note(node).layer
    assert name is not None, f"{node.name} is a layer"
    return name


def operand(node: fx.Node, position: int = 0) -> fx.Node:
    """A call's operand that is itself a node."""
    found = node.args[position]
    assert isinstance(found, fx.Node), f"operand {position} of {node.name} is a node"
    return found
