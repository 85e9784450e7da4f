"""Example inputs of an ONNX file's network: their shapes, and what can be no input here."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datafree.models.onnx_file.bounds import MOST_VALUES, MOST_WHERE_ASKED
from datafree.models.onnx_file.records import Graph, Input
from datafree.models.state_dict import ModelError

CHANNELS_FIRST = [0, 3, 1, 2]


def with_channels_first(graph: Graph) -> Graph:
    """Begin the network behind the Transpose of an input whose channels come last: all else takes them second."""
    found = {}
    for given in graph.inputs:
        readers = [node for node in graph.nodes if given.name in node.inputs]
        if (
            len(readers) == 1
            and readers[0].attributes.get("perm") == CHANNELS_FIRST
            and given.name not in graph.outputs
        ):
            found[given.name] = readers[0]
    moved = {id(node) for node in found.values()}
    inputs = tuple(
        replace(given, name=found[given.name].outputs[0], sides=_first(given.sides), transposed=given.name)
        if given.name in found
        else given
        for given in graph.inputs
    )
    return replace(graph, inputs=inputs, nodes=tuple(node for node in graph.nodes if id(node) not in moved))


def _first(sides: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(sides[i] for i in CHANNELS_FIRST) if len(sides) == len(CHANNELS_FIRST) else sides


def example_inputs(graph: Graph, wanted: tuple[int, ...] | None, path: str | Path) -> tuple[Tensor, ...]:
    """Zeros for every input: as `wanted` where it fits, else as the file says; integers that are cast are floats here.

    Raises:
        ModelError: a size is not known or does not fit, or an input is no batch of floats.
    """
    if not graph.inputs:
        raise ModelError(f"{path} has no input that its network reads; export the network with its input")
    first, *others = graph.inputs
    shapes = [_shape(first, wanted, path)]
    shapes += [_shape(given, wanted if wanted and _fits(given, wanted) else None, path) for given in others]
    for given in graph.inputs:
        _check_input(given, graph, path)
    for shape in shapes:
        if math.prod(shape[1:]) > (MOST_WHERE_ASKED if wanted else MOST_VALUES):
            raise ModelError(
                f"{path}: an input of {_sides(shape)} is larger than any image; say another size (--input)"
            )
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
    name = given.transposed or given.name
    if wanted is not None:
        last = _first(wanted) if given.transposed else wanted  # as the file has it
        fitting = [sides for sides in (wanted, last) if _fits(given, sides)]
        if not fitting:
            raise ModelError(f"{path}: the input {name} is {_sides(given.sides)}; {_sides(wanted)} does not fit")
        return fitting[0]
    if None in given.sides[1:]:
        raise ModelError(f"{path}: the input {name} is {_sides(given.sides)}; say at which size, as in 1,3,224,224")
    return tuple(side or 1 for side in given.sides)


def _fits(given: Input, wanted: tuple[int, ...]) -> bool:
    known = given.sides
    return len(wanted) == len(known) and all(k in (None, w) for k, w in zip(known[1:], wanted[1:], strict=True))


def _sides(sides: tuple[int | None, ...]) -> str:
    return f"({', '.join('any' if side is None else str(side) for side in sides)})"
