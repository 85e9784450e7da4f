"""Scales moved a little so that no sum lies on a rounding tie: every kernel then gives the same integers (ours)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx

from datafree import graph as g
from datafree.graph import operator_of
from datafree.records import LayerResult
from datafree.solve import Grids, Solution, fused_operand
from datafree.student.assemble import DEQUANTIZE, QUANTIZE, assemble, stored_scale

TOLERANCE = 5e-4  # of a scale; 66 dB below what it scales
LARGEST = 2**13  # denominator; half a part of it is what float32 may be off by
EXACT = 1e-6  # of a fraction: scales are stored as float32
Key = tuple[str, int]
Reading = tuple[fx.Node, fx.Node, str | None]  # a quantize node, what computes its values, a vector between them


def snap_scales(solution: Solution) -> tuple[fx.GraphModule, dict[str, LayerResult]]:
    """The student as `assemble` makes it, with scales moved so that it computes the same integers wherever it runs.

    A layer sums up an integer k and stores round(k m), m = input scale * weight scale / output scale. Where k m is a
    half, but for what float32 sums are off by, kernels that add in another order store another integer, and every
    layer turns one such integer into several. With m = a / b and b odd, k m is never nearer to a half than 1 / (2 b).

    So each weight scale, or each entry of the vector behind a layer of one scale, becomes one that makes its m such a
    fraction; integers of weights stay. Operands of sums, concatenations and means have their scale moved in the same
    way against that of the result, from the output to the input, a narrow grid against the wide one it is rounded from.
    What has been moved once stays: an operand of several sums fits the last one, a layer that is rounded to two grids
    the first. So does what no fraction is near to. A layer that a sum is computed with, so that only their sum is
    rounded, gets fractions whose denominators are multiples of the other operand's.

    Returns:
        The student, and the layers with the scales it has.
    """
    student, grids, moved = assemble(solution), dict(solution.grids), set()
    readings = [(n, *_source(student, n)) for n in student.graph.nodes if n.target is QUANTIZE]
    if not readings:
        return student, solution.layers
    fused = _fused_layers(student) if solution.plan.target.fuses_sums else {}
    for node, source, vector in reversed(readings):
        for keys, count in _operands(source, fused.get(source)) if vector is None else ():
            if moved.isdisjoint(keys):
                _move_operands(grids, keys, count * _scale(grids, _grid(node)))
                moved |= {*keys}
    for node, source, vector in readings:
        key, wide = _grid(node), _key(source)
        if wide and wide != key and vector is None and key not in moved:
            _move(grids, key, _scale(grids, wide) / float(near_fractions(_ratios(grids, [wide], _scale(grids, key)))))
            moved.add(key)
    teacher, layers = _layers_moved(student, readings, replace(solution, grids=grids), fused)
    return assemble(replace(solution, teacher=teacher, layers=layers, grids=grids)), layers


def _move_operands(grids: Grids, keys: tuple[Key, ...], unit: float) -> None:
    for key, step in zip(keys, near_fractions(_ratios(grids, keys, unit))[0], strict=True):
        _move(grids, key, float(step) * unit)


def _layers_moved(
    student: fx.GraphModule, readings: list[Reading], solution: Solution, fused: dict[fx.Node, fx.Node]
) -> tuple[fx.GraphModule, dict[str, LayerResult]]:
    """Layers with other weight scales, and the graph with other vectors behind those of one scale."""
    results, grids = solution.layers, solution.grids
    teacher, new = g.duplicate(solution.teacher), dict(results)
    for node, source, vector in readings:
        other = 1
        if source in fused and vector is None:
            others = [_scale(grids, key) for operand in g.summands(source) if (key := _key(operand))]
            other = _denominator(others[0] / _scale(grids, _grid(node))) if others else 1
            source = fused[source]
        name = g.note(source).layer or ""
        read = _key(source.args[0]) if source.args else None
        grid = results[name].weight_qparams if name in results else None
        if grid is None or read is None or new[name] is not results[name]:
            continue
        steps = stored_scale(student, g.weight_node(source)).double() * _scale(grids, read) / _scale(grids, _grid(node))
        steps = steps if vector is None else steps * g.get_tensor(student, vector).double().flatten()
        change = (near_fractions(other * steps[:, None])[:, 0] / other / steps).float()
        if len(change) == grid.scale.numel():
            grid = replace(grid, scale=grid.scale * change)
        else:
            path = vector or f"{name}.v_o"
            value = g.get_tensor(teacher, path)
            g.set_tensor(teacher, path, value * change.view_as(value))
        new[name] = replace(results[name], weight_qparams=grid)
    return teacher, new


def scale_changes(student: fx.GraphModule, start: fx.GraphModule) -> dict[str, Tensor]:
    """What to multiply layers' stored scales with so that they make such fractions again, by name.

    Of the layers whose m is another than in `start`, the same student with other scales.
    """
    before, now = _steps_of_layers(start), _steps_of_layers(student)
    moved = {name: steps for name, steps in now.items() if not torch.equal(steps, before[name])}
    return {name: (near_fractions(steps[:, None])[:, 0] / steps).float() for name, steps in moved.items()}


def _steps_of_layers(student: fx.GraphModule) -> dict[str, Float[Tensor, " c"]]:
    """m of each layer whose sums are rounded at once, to the first of its grids."""
    found: dict[str, Tensor] = {}
    for node in (n for n in student.graph.nodes if n.target is QUANTIZE):
        source, vector = _source(student, node)
        name = g.note(source).layer
        if not name or vector or name in found or g.weight_node(source).op == "get_attr":
            continue
        if (read := g.operand(source)).target is DEQUANTIZE:
            scales: Any = read.args[1], node.args[1]
            found[name] = stored_scale(student, g.weight_node(source)).double() * scales[0] / scales[1]
    return found


def near_fractions(steps: Float[Tensor, "c n"]) -> Float[Tensor, "c n"]:
    """Fractions near the values of each row, of the smallest odd denominator they can share; a row without one stays.

    Args:
        steps: positive, float64.
    """
    denominators = torch.arange(1, LARGEST, 2, dtype=steps.dtype)
    rows = []
    for row in steps:
        tried = (row[:, None] * denominators).round() / denominators
        near = (tried - row[:, None]).abs().amax(0) <= TOLERANCE * row.amin()
        rows.append(tried[:, int(near.int().argmax())].clone() if bool(near.any()) else row)  # not all that was tried
    return torch.stack(rows)


def _denominator(fraction: float) -> int:
    """The smallest odd denominator of a fraction; 1 where it has none that is small."""
    denominators = torch.arange(1, LARGEST, 2, dtype=torch.float64)
    exact = ((fraction * denominators).round() / denominators - fraction).abs() <= EXACT * fraction
    return int(denominators[int(exact.int().argmax())])


def _fused_layers(student: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """Layers that sums are computed with, by the sum."""
    found = {node: fused_operand(node) for node in student.graph.nodes if node.op == "call_function"}
    return {node: layer for node, layer in found.items() if layer is not None}


def _source(student: fx.GraphModule, quantize: fx.Node) -> tuple[fx.Node, str | None]:
    """What computes the values that are rounded, before any clipping; and the path of the constant that its channels
    are multiplied with on the way."""
    node = g.operand(quantize)
    vector = None
    while g.clip_bounds(node) is not None or (vector is None and g.channel_multiplier(student, node) is not None):
        if g.clip_bounds(node) is None:
            vector = str(g.operand(node, 1).target)
        node = g.operand(node)
    layer = g.note(node).layer
    return (quantize, None) if vector and layer and not g.has_rows_in_dimension_1(node) else (node, vector)


def _operands(node: fx.Node, fused: fx.Node | None) -> Iterator[tuple[tuple[Key, ...], int]]:
    """Grids whose values are added up, and by what their sum is divided; nothing where an operand is no integer.

    Args:
        fused: the operand that is a layer computed with the sum, which has no grid.
    """
    row = operator_of(node)
    if not (row.averages or row.channels in ("unites", "joins")) or node.kwargs:
        return
    args: Any = node.args
    operands = args[0] if row.channels == "joins" else args[: 2 if row.channels == "unites" else 1]
    operands = [operand for operand in operands if operand is not fused] if fused else operands
    keys = tuple(key for operand in operands if (key := _key(operand)))
    if row.channels == "joins":
        yield from (((key,), 1) for key in keys)
    elif len(keys) == len(operands) and (count := row.averages(node) if row.averages else 1):
        yield keys, count


def _grid(quantize: fx.Node) -> Key:
    """The grid that a quantize node rounds to."""
    grid = g.note(quantize).grid
    assert grid is not None, "assemble writes down the grid of every quantize node"
    return grid


def _key(node: object) -> Key | None:
    """The grid that a dequantize node reads, None for anything else."""
    return g.note(g.operand(node)).grid if isinstance(node, fx.Node) and node.target is DEQUANTIZE else None


def _ratios(grids: Grids, keys: Sequence[Key], unit: float) -> Float[Tensor, "1 n"]:
    return torch.tensor([[_scale(grids, key) / unit for key in keys]], dtype=torch.float64)


def _scale(grids: Grids, key: Key) -> float:
    return float(grids[key].scale)


def _move(grids: Grids, key: Key, scale: float) -> None:
    grids[key] = replace(grids[key], scale=torch.tensor([scale]))
