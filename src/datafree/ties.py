"""Scales moved a little so that no sum lies on a rounding tie: every kernel then gives the same integers (ours)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, fx

from datafree import graph as g
from datafree.assemble import assemble, qd
from datafree.graph import aten
from datafree.layer import Grids
from datafree.plan import Plan
from datafree.records import LayerResult
from datafree.spaces import SUMS

TOLERANCE = 5e-4  # of a scale; 66 dB below what it scales
LARGEST = 2**13  # denominator; half a part of it is what float32 may be off by
QUANTIZE, DEQUANTIZE = qd.quantize_per_tensor.default, qd.dequantize_per_tensor.default
CLIPS = {aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default}
MEANS = {aten.mean.dim, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default}
Key = tuple[str, int]


def settled(
    teacher: fx.GraphModule, plan: Plan, results: dict[str, LayerResult], grids: Grids
) -> tuple[fx.GraphModule, dict[str, LayerResult]]:
    """The student as `assemble` makes it, with scales moved so that it computes the same integers wherever it runs.

    A layer sums up an integer k and stores round(k m), m = input scale * weight scale / output scale. Where k m is a
    half, but for what float32 sums are off by, kernels that add in another order store another integer, and every
    layer turns one such integer into several. With m = a / b and b odd, k m is never nearer to a half than 1 / (2 b).

    So each weight scale, or each entry of the vector behind a layer of one scale, becomes one that makes its m such a
    fraction; integers of weights stay. Operands of sums, concatenations and means have their scale moved in the same
    way against that of the result, from the output to the input, a narrow grid against the wide one it is rounded from.
    What has been moved once stays: an operand of several sums fits the last one. So does what no fraction is near to.

    Args:
        teacher: the float graph of these layers; stays as it is.

    Returns:
        The student, and the layers with the scales it has.
    """
    student, teacher = assemble(teacher, plan, results, grids), g.duplicate(teacher)
    grids, results = dict(grids), dict(results)
    readings = [(n, *_source(n)) for n in student.graph.nodes if n.target is QUANTIZE]
    moved: set[Key] = set()
    for node, source, vector in reversed(readings):
        for keys, count in _operands(source) if vector is None else ():
            if moved.isdisjoint(keys):
                unit = count * _scale(grids, node.meta["grid"])
                steps = torch.tensor([[_scale(grids, key) / unit for key in keys]], dtype=torch.float64)
                for key, step in zip(keys, near_fractions(steps)[0], strict=True):
                    _move(grids, key, float(step) * unit)
                moved |= {*keys}
    for node, source, vector in readings:
        key, wide = node.meta["grid"], _key(source)
        if wide and wide != key and vector is None:
            step = torch.tensor([[_scale(grids, wide) / _scale(grids, key)]], dtype=torch.float64)
            _move(grids, key, _scale(grids, wide) / float(near_fractions(step)))
    for node, source, vector in readings:
        result, read = results.get(source.meta.get("layer") or ""), source.args and _key(source.args[0])
        if result is None or result.weight_qparams is None or not read:
            continue
        grid = result.weight_qparams
        steps = _weight_scale(student, source) * _scale(grids, read) / _scale(grids, node.meta["grid"])
        steps = steps if vector is None else steps * g.get_tensor(student, vector).double().flatten()
        change = (near_fractions(steps[:, None])[:, 0] / steps).float()
        if len(change) == grid.scale.numel():
            results[result.name] = replace(result, weight_qparams=replace(grid, scale=grid.scale * change))
        else:
            path = vector or f"{result.name}.v_o"
            value = g.get_tensor(teacher, path)
            g.set_tensor(teacher, path, value * change.view_as(value))
    return assemble(teacher, plan, results, grids), results


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
        rows.append(tried[:, int(near.int().argmax())] if bool(near.any()) else row)
    return torch.stack(rows)


def _source(quantize: fx.Node) -> tuple[fx.Node, str | None]:
    """What computes the values that are rounded, before any clipping; and the path of the constant (1, C, 1, 1) that
    they are multiplied with on the way."""
    node: fx.Node = quantize.args[0]  # type: ignore[assignment]
    vector = None
    while node.target in CLIPS or (vector is None and _is_constant_product(node)):
        if node.target not in CLIPS:
            vector = str(node.args[1].target)  # type: ignore[union-attr]
        node = node.args[0]  # type: ignore[assignment]
    return node, vector


def _is_constant_product(node: fx.Node) -> bool:
    return node.target is aten.mul.Tensor and getattr(node.args[1], "op", "") == "get_attr"


def _operands(node: fx.Node) -> Iterator[tuple[tuple[Key, ...], int]]:
    """Grids whose values are added up, and by what their sum is divided; nothing where an operand is no integer."""
    operands = node.args[0] if node.target is aten.cat.default else node.args[: 2 if node.target in SUMS else 1]
    if node.target not in SUMS | MEANS | {aten.cat.default} or node.kwargs:
        return
    keys = tuple(key for operand in operands if (key := _key(operand)))
    if node.target is aten.cat.default:
        yield from (((key,), 1) for key in keys)
    elif len(keys) == len(operands) and (count := _averaged(node)):
        yield keys, count


def _averaged(node: fx.Node) -> int:
    """How many values a pool averages, 1 for what is no pool, 0 where that differs from place to place."""
    if node.target not in MEANS:
        return 1
    shape = g.shape(node.args[0])
    if node.target is aten.mean.dim:
        return math.prod(shape[dim] for dim in node.args[1])
    if node.target is aten.adaptive_avg_pool2d.default:
        sides = [divmod(n, out) for n, out in zip(shape[-2:], node.args[1], strict=True)]
        return 0 if any(rest for _, rest in sides) else math.prod(side for side, _ in sides)
    return 0 if len(node.args) > 4 else math.prod(node.args[1])  # ceil_mode and padding left out of the count


def _key(node: object) -> Key | None:
    """The grid that a dequantize node reads, None for anything else."""
    return node.args[0].meta.get("grid") if isinstance(node, fx.Node) and node.target is DEQUANTIZE else None


def _weight_scale(student: fx.GraphModule, layer: fx.Node) -> Float[Tensor, " c"]:
    """Of a layer's weight, with a vector behind the layer that it took in."""
    stored = layer.args[1].args[1]
    return (torch.tensor([stored]) if isinstance(stored, float) else g.get_tensor(student, stored.target)).double()


def _scale(grids: Grids, key: Key) -> float:
    return float(grids[key].scale)


def _move(grids: Grids, key: Key, scale: float) -> None:
    grids[key] = replace(grids[key], scale=torch.tensor([scale]))
