"""The student: the teacher's graph with integer weights and quantize/dequantize pairs, in the PT2E reference form."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, fx

from datafree import graph as g
from datafree.records import LayerResult, QParams
from datafree.solve import WIDE, Plan, Solution, quantized_at, wide_operands

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.ao.quantization.fx import _decomposed  # noqa: F401  registers torch.ops.quantized_decomposed

qd = torch.ops.quantized_decomposed
QUANTIZE, DEQUANTIZE = qd.quantize_per_tensor.default, qd.dequantize_per_tensor.default
DEQUANTIZE_ROWS = qd.dequantize_per_channel.default
INT32 = (-(2**31), 2**31 - 1, torch.int32)


def assemble(solution: Solution) -> fx.GraphModule:
    """Build the student from solved layers; the teacher is not touched.

    Weights are stored as int8 with zero_point 0 (q - zero_point of a grid below 8 bits always fits), biases as int32
    in units of input scale * weight scale. A vector v_o behind a layer folds into both scales.
    """
    plan, grids, results = solution.plan, solution.grids, solution.layers
    student = g.duplicate(solution.teacher)
    by_name = g.nodes_by_name(student)
    quantized: dict[tuple[fx.Node, int], fx.Node] = {}
    inputs = {name: g.operand(by_name[item.layer.node]) for name, item in plan.layers.items()}
    grid_names = {node: quantized_at(node).name for node in student.graph.nodes}
    for node, widths in _demands(student, plan, inputs).items():
        previous, users = node, list(node.users)
        for bits in sorted(widths, reverse=True):
            key = grid_names[node], bits
            previous = quantized[node, bits] = _quantize_after(student, node, previous, grids[key])
            g.annotate(g.operand(previous), grid=key)
        for user in users:
            if _reads_integers(user, max(widths), plan):
                user.replace_input_with(node, quantized[node, max(widths)])
    for name, item in plan.layers.items():
        node, scale = by_name[item.layer.node], None
        if item.input_bits:
            node.args = (quantized[inputs[name], item.input_bits], *node.args[1:])
            scale = float(grids[grid_names[inputs[name]], item.input_bits].scale)
        if name in results:
            _put_weight(student, node, results[name], scale)
    g.tidy(student)
    return student


def stored_scale(student: fx.GraphModule, dequantize: fx.Node) -> Tensor:
    """The scale of stored integers, (1,) or (C,)."""
    if isinstance(scale := dequantize.args[1], float):
        return torch.tensor([scale])
    return g.tensor_of(student, g.operand(dequantize, 1))


def _reads_integers(user: fx.Node, width: int, plan: Plan) -> bool:
    """Whether an operator reads a tensor as it is quantized for others.

    Not kept layers; and below 8 bits only what moves values to layers that want no more.
    """
    layer = g.note(user).layer
    if layer:
        return plan.layers[layer].input_bits is not None
    if width >= WIDE:
        return user.op != "output" or plan.target.rounded == "everything"
    readers = [plan.layers[name].input_bits if (name := g.note(u).layer) else None for u in user.users]
    return g.operator_of(user).same_values and all(bits == width for bits in readers)


def _demands(student: fx.GraphModule, plan: Plan, inputs: dict[str, fx.Node]) -> dict[fx.Node, set[int]]:
    """Widths each node is quantized to, in execution order.

    A tensor that a node only moves around is quantized again with the grid of the node it comes from, which changes no
    value: the pair is what tells a runtime that the operator may run on integers.
    """
    wanted: dict[fx.Node, set[int]] = {}
    for name, item in plan.layers.items():
        if item.input_bits:
            wanted.setdefault(inputs[name], set()).add(item.input_bits)
    for node in wide_operands(student, plan.target):
        if quantized_at(node).name in plan.activation_bits:
            wanted.setdefault(node, set()).add(max(plan.activation_bits[quantized_at(node).name]))
    for name, widths in plan.activation_bits.items():
        wanted.setdefault(g.node_of(student, name), set()).update(widths)
    return {node: wanted[node] for node in student.graph.nodes if node in wanted}


def _quantize_after(student: fx.GraphModule, place: fx.Node, x: fx.Node, qparams: QParams) -> fx.Node:
    """x -> quantize -> dequantize on one grid for the tensor."""
    scale, zero_point = float(qparams.scale), int(qparams.zero_point)
    args = (scale, zero_point, qparams.qmin, qparams.qmax, torch.int8 if qparams.qmin < 0 else torch.uint8)
    with student.graph.inserting_after(x):
        q = student.graph.call_function(QUANTIZE, (x, *args))
    with student.graph.inserting_after(q):
        dq = student.graph.call_function(DEQUANTIZE, (q, *args))
    for new in (q, dq):
        g.annotate(new, shape=g.shape(place))
    return dq


def _put_weight(student: fx.GraphModule, node: fx.Node, result: LayerResult, input_scale: float | None) -> None:
    """Replace a layer's float weight and bias by dequantized integers."""
    grid, name = result.weight_qparams, result.name
    shape = g.get_tensor(student, f"{name}.weight").shape
    if grid is None:
        with student.graph.inserting_before(node):
            # + 0.0: a pruned weight is no -0.0, which a packed file would have to store
            weight = g.attribute(student, f"{name}.weight", result.weight.view(shape) + 0.0)
            g.set_parameters(node, weight, g.attribute(student, f"{name}.bias", result.bias))
        return
    scale, bias = grid.scale, result.bias
    after = next((u for u in node.users if g.note(u).v_o == name), None)
    if after is not None:
        v_o = g.get_tensor(student, f"{name}.v_o").flatten()
        scale, bias = scale * v_o, bias * v_o
        after.replace_all_uses_with(node)
    offset = grid.zero_point if grid.zero_point.numel() == 1 else grid.zero_point[:, None]
    integers = (result.weight - offset).to(torch.int8).view(shape)
    span = grid.qmax - grid.qmin
    low, high = (grid.qmin, grid.qmax) if grid.qmin < 0 else (-span, span)
    with student.graph.inserting_before(node):
        weight = _dequantized(student, f"{name}.weight", integers, scale, (low, high, torch.int8))
        if input_scale is None:
            offset_node = g.attribute(student, f"{name}.bias", bias)
        else:
            step = (scale.double() * input_scale).float().expand(len(bias)).contiguous()
            offset_node = _dequantized(student, f"{name}.bias", torch.round(bias / step).to(torch.int32), step, INT32)
    g.set_parameters(node, weight, offset_node)


def _dequantized(student: fx.GraphModule, path: str, integers: Tensor, scale: Tensor, grid: tuple) -> fx.Node:
    """A dequantize node of stored integers, one scale in all or one for each entry of dimension 0."""
    stored = g.attribute(student, path, integers)
    if scale.numel() == 1:
        args = (stored, float(scale), 0, *grid)
        node = student.graph.call_function(DEQUANTIZE, args)
    else:
        scales = g.attribute(student, f"{path}_scale", scale.float())
        zeros = g.attribute(student, f"{path}_zero_point", torch.zeros(len(scale), dtype=torch.int64))
        node = student.graph.call_function(DEQUANTIZE_ROWS, (stored, scales, zeros, 0, *grid))
    g.annotate(node, shape=tuple(integers.shape))
    return node
