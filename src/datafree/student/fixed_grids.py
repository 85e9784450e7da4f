"""Grids that a runtime prescribes: one in and out of what only moves or averages, a known one of known ranges."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from datafree import graph as g
from datafree.graph import operator_of
from datafree.recipe import Target
from datafree.student.assemble import DEQUANTIZE, QUANTIZE

STEPS = 256
INT8 = (-128, 127, torch.int8)
Grid = tuple[Any, ...]
"""Scale, zero_point, qmin, qmax and type, as quantize nodes have them."""


def fit_grids_(student: fx.GraphModule, target: Target) -> None:
    """Round values once more where the runtime's operators give them on another grid than the student's.

    What concatenations and paddings read is rounded to the grid of their result beforehand, which changes no value;
    averages and interpolations to the grid of what they read, sigmoid, tanh and softmax to that of their range
    (LiteRT's 8-bit specification), which does.
    """
    if not target.fixed_grids:
        return
    for node in list(student.graph.nodes):
        if node.op == "call_function" and _is_rounded(node):
            if operator_of(node).channels in ("joins", "pads"):
                _round_operands(student, node, _grid(next(iter(node.users))))
            elif (grid := _prescribed(node)) is not None and any(_grid(u) != grid for u in node.users):
                _round_result(student, node, grid)
    g.tidy(student)


def _is_rounded(node: fx.Node) -> bool:
    """Whether nothing but quantize nodes reads it."""
    return bool(node.users) and all(user.target is QUANTIZE for user in node.users)


def _grid(quantize: fx.Node) -> Grid:
    return tuple(quantize.args[1:])


def _prescribed(node: fx.Node) -> Grid | None:
    """The grid that the runtime's operator gives values on; None = any."""
    row = operator_of(node)
    if row.within is not None:
        low, high = row.within
        scale = (high - low) / STEPS
        return (scale, INT8[0] - round(low / scale), *INT8)
    averages = row.over == "space" and not row.same_values and any(side > 1 for side in g.shape(node)[2:])
    return _grid(g.operand(node)) if averages and g.operand(node).target is DEQUANTIZE else None


def _round_operands(student: fx.GraphModule, node: fx.Node, grid: Grid) -> None:
    for operand in node.all_input_nodes:
        if operand.target is DEQUANTIZE and _grid(operand) != grid:
            with student.graph.inserting_before(node):
                node.replace_input_with(operand, _rounded(student, operand, grid))


def _round_result(student: fx.GraphModule, node: fx.Node, grid: Grid) -> None:
    users = list(node.users)
    with student.graph.inserting_after(node):
        rounded = _rounded(student, node, grid)
    for user in users:
        user.replace_input_with(node, rounded)


def _rounded(student: fx.GraphModule, x: fx.Node, grid: Grid) -> fx.Node:
    """x -> quantize -> dequantize."""
    quantize = student.graph.call_function(QUANTIZE, (x, *grid))
    with student.graph.inserting_after(quantize):
        dequantize = student.graph.call_function(DEQUANTIZE, (quantize, *grid))
    for new in (quantize, dequantize):
        g.annotate(new, shape=g.shape(x))
    return dequantize
