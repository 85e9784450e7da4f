"""Example inputs of an ONNX file's network: their shapes, and what can be no input here."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from datafree.models.onnx_file.records import Graph, Input
from datafree.models.state_dict import ModelError


def example_inputs(graph: Graph, wanted: tuple[int, ...] | None, path: str | Path) -> tuple[Tensor, ...]:
    """Zeros for every input: as `wanted` where it fits, else as the file says; integers that are cast are floats here.

    Raises:
        ModelError: a size is not known or does not fit, or an input is no batch of floats.
    """
    first, *others = graph.inputs
    shapes = [_shape(first, wanted, path)]
    shapes += [_shape(given, wanted if wanted and _fits(given, wanted) else None, path) for given in others]
    for given in graph.inputs:
        _check_input(given, graph, path)
    return tuple(torch.zeros(1, *shape[1:]) for shape in shapes)


def _check_input(given: Input, graph: Graph, path: str | Path) -> None:
    readers = [node for node in graph.nodes if given.name in node.inputs]
    if given.dtype != "float32" and any(node.operator not in ("Cast", "Shape") for node in readers):
        raise ModelError(
            f"{path}: the input {given.name} holds {given.dtype}, which {readers[0]} reads; networks whose inputs are "
            "floats are read: images, signals"
        )
    if not given.sides or (len(graph.inputs) > 1 and given.sides[0] not in (None, 1)):
        raise ModelError(
            f"{path}: the input {given.name} is {_sides(given.sides)}, which is no batch; networks are read "
            "whose inputs all have a batch of any size, or of one, in front"
        )


def _shape(given: Input, wanted: tuple[int, ...] | None, path: str | Path) -> tuple[int, ...]:
    if wanted is not None:
        if not _fits(given, wanted):
            raise ModelError(f"{path}: the input {given.name} is {_sides(given.sides)}; {_sides(wanted)} does not fit")
        return wanted
    if None in given.sides[1:]:
        raise ModelError(
            f"{path}: the input {given.name} is {_sides(given.sides)}; say at which size, as in 1,3,224,224"
        )
    return tuple(side or 1 for side in given.sides)


def _fits(given: Input, wanted: tuple[int, ...]) -> bool:
    known = given.sides
    return len(wanted) == len(known) and all(k in (None, w) for k, w in zip(known[1:], wanted[1:], strict=True))


def _sides(sides: tuple[int | None, ...]) -> str:
    return f"({', '.join('any' if side is None else str(side) for side in sides)})"
