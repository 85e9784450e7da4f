"""The student: integers where integers are promised, float where it was asked for, and one program for every reader."""

from __future__ import annotations

import functools
import operator
import warnings

import pytest
import torch
from torch.utils._pytree import tree_leaves

from datafree import Recipe, compress
from datafree import graph as g
from datafree.graph import aten
from datafree.quantization.affine import dequantize
from datafree.student.tie_free_scales import TOLERANCE
from nets import NETS

qd = torch.ops.quantized_decomposed
QUANTIZE, DEQUANTIZE = qd.quantize_per_tensor.default, qd.dequantize_per_tensor.default
DEQUANTIZE_ROWS = qd.dequantize_per_channel.default

VECTORS = ("equalize=foldable", "weights.per=tensor")
FREE = ("equalize=free", "weights.per=tensor")

FOUR = ("weights.bits=4",)

# Tensors that are summed, concatenated, pooled, moved, gated and scaled by vectors.
SEVERAL = {
    "chain": FOUR,
    "residual": (*FREE, "weights.bits=4"),
    "depthwise inverted residual": FOUR,
    "concat": FOUR,
    "squeeze and excitation": FREE,
    "channel shuffle and split": FREE,
    "linear after flatten": FOUR,
}


@functools.cache
def made(name, *settings):
    """(run, inputs, v_o of every layer that has one)."""
    model, inputs = NETS[name]()
    run = compress(model, Recipe.preset("w8a8").updated(["signal.images=2", "solve.clip=false", *settings]), inputs)
    vectors = {g.note(n).v_o: vector(run.teacher, n) for n in run.teacher.graph.nodes if g.note(n).v_o}
    return run, inputs, vectors


def vector(graph, node):
    return g.get_tensor(graph, node.args[1].target).flatten()


def outputs(module, inputs):
    with torch.no_grad():
        return torch.cat([v.flatten() for v in tree_leaves(module(*inputs))])


def difference(a, b):
    """Largest difference as a share of the output's range."""
    return float((a - b).abs().max() / (b.max() - b.min()))


def calls(graph, *targets):
    return [n for n in graph.graph.nodes if n.op == "call_function" and n.target in targets]


def layer_nodes(graph):
    nodes = g.nodes_by_name(graph)
    return {name: nodes[layer.node] for name, layer in g.layers(graph).items()}


def value_of(graph, node):
    """What a dequantize node of stored integers gives."""
    read = lambda n: g.get_tensor(graph, n.target)  # noqa: E731
    return node.target(*torch.fx.node.map_arg(node.args, read))


def bits_of(node):
    """Width of the grid a dequantize node reads; None where the tensor is float."""
    return (node.args[4] - node.args[3]).bit_length() if node.target is DEQUANTIZE else None


# Stored integers


@pytest.mark.parametrize("name", SEVERAL)
def test_weights_are_int8_biases_int32_and_scales_positive(name):
    run, _, _ = made(name, *SEVERAL[name])
    nodes = layer_nodes(run.student)
    assert len(nodes) == len(run.layers) == run.summary.num_layers
    for node in nodes.values():
        weight, bias = (g.get_tensor(run.student, n.args[0].target) for n in node.args[1:3])
        assert weight.dtype == torch.int8 and bias.dtype == torch.int32
        low, high = node.args[1].args[-3:-1]
        assert low <= int(weight.min()) and int(weight.max()) <= high
    for node in calls(run.student, QUANTIZE, DEQUANTIZE):
        assert node.args[1] > 0 and node.args[3] <= node.args[2] <= node.args[4]
    for node in calls(run.student, DEQUANTIZE_ROWS):
        scales, zeros = (g.get_tensor(run.student, n.target) for n in node.args[1:3])
        assert bool((scales > 0).all()) and not bool(zeros.any())


@pytest.mark.parametrize("name", SEVERAL)
def test_dequantized_parameters_are_those_of_the_results(name):
    run, _, vectors = made(name, *SEVERAL[name])
    nodes = layer_nodes(run.student)
    for result in run.layers:
        grid, node, v_o = result.weight_qparams, nodes[result.name], vectors.get(result.name)
        weight = value_of(run.student, node.args[1])
        if v_o is None:
            wanted = dequantize(result.weight.float(), grid)
        else:
            zero_points = grid.zero_point.expand(len(v_o))[:, None]
            wanted = (result.weight - zero_points).float() * (grid.scale * v_o)[:, None]
        if v_o is None:
            assert torch.equal(weight.flatten(1), wanted.flatten(1))
        else:  # a row's scale may have been moved away from ties, within v_o
            torch.testing.assert_close(weight.flatten(1), wanted.flatten(1), rtol=3 * TOLERANCE, atol=0)
        bias, step = value_of(run.student, node.args[2]), bias_step(run.student, node)
        wanted = result.bias * (1 if v_o is None else v_o)
        moved = 1e-6 if v_o is None else 3 * TOLERANCE
        assert bool(((bias - wanted).abs() <= 0.5 * step + moved * wanted.abs()).all())


def bias_step(graph, node):
    scale = node.args[2].args[1]
    return g.get_tensor(graph, scale.target) if isinstance(scale, torch.fx.Node) else scale


@pytest.mark.parametrize("name", ["chain", "depthwise inverted residual", "linear after flatten"])
def test_a_layer_in_integer_arithmetic_gives_what_its_node_gives(name):
    """sum (q_x - z_x) q_w + q_b, in 64-bit integers, times s_x s_w: what a runtime computes."""
    run, inputs, _ = made(name, *FOUR)
    layers, seen = g.layers(run.student), 0
    with torch.no_grad():
        for node, values in g.walk(run.student, inputs):
            if not g.note(node).layer:
                continue
            layer, x, weight, bias = layers[g.layer_name(node)], *node.args[:3]
            q_x = (values[x] / x.args[1]).round().double()  # (q - zero_point)
            q_w, q_b = (g.get_tensor(run.student, n.args[0].target).double() for n in (weight, bias))
            if layer.kind == "conv2d":
                geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
                total = torch.nn.functional.conv2d(q_x, q_w, q_b, *geometry)
            else:
                total = torch.nn.functional.linear(q_x, q_w, q_b)
            step = torch.as_tensor(bias_step(run.student, node)).double()
            wanted = total * step.view(1, -1, *[1] * (total.dim() - 2))
            assert torch.equal(total, total.round())
            assert difference(g.execute(node, values).double(), wanted) < 1e-5
            seen += 1
    assert seen == len(layers)


# What is folded, and what stays


@pytest.mark.parametrize("name", ["chain", "squeeze and excitation"])
def test_output_vectors_fold_into_the_scales(name):
    run, inputs, vectors = made(name, *VECTORS, "activations.bits=null")
    assert vectors, "the net was chosen because it has v_o"
    assert not [n for n in run.student.graph.nodes if g.note(n).v_o]
    assert not [path for path in run.student.state_dict() if path.endswith("v_o")]
    for name in vectors:
        assert layer_nodes(run.student)[name].args[1].target is DEQUANTIZE_ROWS, "one scale a row where v_o went"
    assert difference(outputs(run.student, inputs), outputs(run.teacher, inputs)) < 0.03


@pytest.mark.parametrize("name", ["depthwise inverted residual"])
def test_input_vectors_stay_as_a_multiply(name):
    run, inputs, _ = made(name, *FREE, "activations.bits=null")
    wanted = {g.note(n).v_i for n in run.teacher.graph.nodes if g.note(n).v_i}
    assert wanted == {g.note(n).v_i for n in run.student.graph.nodes if g.note(n).v_i} != set()
    assert difference(outputs(run.student, inputs), outputs(run.teacher, inputs)) < 0.03


def test_the_teacher_is_not_touched():
    run, _, _ = made("residual", *SEVERAL["residual"])
    assert not calls(run.teacher, QUANTIZE, DEQUANTIZE, DEQUANTIZE_ROWS)
    assert {v.dtype for v in run.teacher.state_dict().values()} == {torch.float32}


def test_kept_layers_stay_float():
    kept = "1.0.conv"
    run, _, _ = made("residual", *FREE, f"layers.{kept}=keep")
    ours, theirs = (layer_nodes(graph)[kept] for graph in (run.student, run.teacher))
    for mine, other in zip(ours.args[1:3], theirs.args[1:3], strict=True):
        assert mine.op == "get_attr"
        assert torch.equal(g.get_tensor(run.student, mine.target), g.get_tensor(run.teacher, other.target))
    assert kept not in {r.name for r in run.layers}
    assert run.summary.num_quantized == len(run.layers) == run.summary.num_layers - 1


def test_a_kept_layer_with_a_vector_keeps_it():
    name = "5.2"
    run, inputs, vectors = made("residual", *VECTORS, "activations.bits=null", f"layers.{name}=keep")
    assert name in vectors
    assert [g.note(n).v_o for n in run.student.graph.nodes if g.note(n).v_o] == [name]
    assert difference(outputs(run.student, inputs), outputs(run.teacher, inputs)) < 0.03


def test_float_weights_with_integer_activations():
    model, inputs = NETS["residual"]()
    recipe = Recipe(signal={"kind": "loader"}, weights={"bits": None})
    run = compress(model, recipe, inputs, images=inputs)
    assert run.layers == () and run.summary.num_quantized == 0
    assert {v.dtype for v in run.student.state_dict().values()} == {torch.float32}
    assert all(bits_of(node.args[0]) == 8 for node in layer_nodes(run.student).values())
    assert 0 < difference(outputs(run.student, inputs), outputs(run.teacher, inputs)) < 0.05


def test_nothing_asked_is_nothing_done():
    run, inputs, _ = made("residual", "weights.bits=null", "activations.bits=null")
    assert not calls(run.student, QUANTIZE, DEQUANTIZE, DEQUANTIZE_ROWS)
    assert torch.equal(outputs(run.student, inputs), outputs(run.teacher, inputs))
    assert run.summary.activations.layer_inputs is None and run.summary.bytes == run.summary.float_bytes


# Widths


@pytest.mark.parametrize("name", ["residual", "concat", "pools"])
def test_four_bits_at_layers_eight_at_sums_concatenations_and_pools(name):
    run, _, _ = made(name, "activations.bits=4", "first_last=same")
    checked = 0
    for node in layer_nodes(run.student).values():
        assert bits_of(node.args[0]) == 4
    for node in calls(run.student, aten.add.Tensor, aten.cat.default, aten.adaptive_avg_pool2d.default,
                      aten.avg_pool2d.default, aten.max_pool2d.default):  # fmt: skip
        assert {bits_of(operand) for operand in node.all_input_nodes} == {8}
        checked += 1
    assert checked
    for node in g.placeholders(run.student):
        (user,) = node.users
        assert user.target is QUANTIZE and user.args[4] - user.args[3] == 255


def test_a_tensor_read_by_a_layer_and_a_sum_is_quantized_twice():
    run, _, _ = made("residual", "activations.bits=4", "first_last=same")
    x = layer_nodes(run.student)["1.0.conv"].args[0]
    wide = x.args[0].args[0]  # dequantize <- quantize <- dequantize
    assert (bits_of(x), bits_of(wide)) == (4, 8)
    assert aten.add.Tensor in {user.target for user in wide.users}
    assert wide.args[0].args[0].target is aten.relu.default


def test_ends_of_eight_bits_read_eight_bits():
    run, _, _ = made("chain", "weights.bits=4", "activations.bits=4")
    nodes = list(layer_nodes(run.student).values())
    assert [bits_of(n.args[0]) for n in nodes] == [8, *[4] * (len(nodes) - 2), 8]
    assert [n.args[1].args[-2] for n in nodes] == [127, *[15] * (len(nodes) - 2), 127]


def test_a_kept_layer_reads_its_input_in_float():
    run, _, _ = made("residual with projection", "activations.bits=4", "first_last=same", "layers.1.1.conv=keep")
    assert bits_of(layer_nodes(run.student)["1.0.conv"].args[0]) == 4
    assert bits_of(layer_nodes(run.student)["1.1.conv"].args[0]) != 4


# A padding value may lie outside of the tensor it is put around


def padded(value):
    torch.manual_seed(0)
    convs = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 4, 3)
    return torch.nn.Sequential(convs[0], torch.nn.ReLU(), torch.nn.ConstantPad2d(1, value), convs[1]).eval()


@pytest.mark.parametrize("value", [
    0.0,
    20.0,
])  # fmt: skip
def test_padding_is_on_the_grid(value):
    model, x = padded(value), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    run = compress(model, Recipe.preset("w8a8").updated(["signal.images=4"]), x)
    assert difference(outputs(run.student, (x,)), outputs(model, (x,))) < 0.05


# One program for every reader


@pytest.mark.parametrize("name", SEVERAL)
def test_the_student_is_in_the_reference_form(name):
    run, _, _ = made(name, *SEVERAL[name])
    for node in run.student.graph.nodes:
        assert node.op in ("placeholder", "get_attr", "call_function", "output")
        if node.op == "call_function" and not isinstance(node.target, torch._ops.OpOverload):
            assert node.target.__module__ in (operator.__name__, "_operator"), node.target
        elif node.op == "call_function":
            assert node.target.namespace in ("aten", "quantized_decomposed"), node.target
    for node in calls(run.student, QUANTIZE):
        assert node.args[5] is torch.uint8 and (node.args[3], node.args[4]) == (0, 255)
        assert {(u.target, u.args[1:]) for u in node.users} == {(DEQUANTIZE, node.args[1:])}
    for node in calls(run.student, DEQUANTIZE, DEQUANTIZE_ROWS):
        assert node.args[0].op == "get_attr" or node.args[0].target is QUANTIZE


@pytest.mark.parametrize("name", ["residual", "channel shuffle and split"])
def test_the_student_can_be_exported_again(name):
    run, inputs, _ = made(name, *SEVERAL[name])
    batch = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        exported = torch.export.export(run.student, inputs, dynamic_shapes=batch, strict=False).module()
    assert torch.equal(outputs(exported, inputs), outputs(run.student, inputs))
    more = tuple(torch.cat([x, x[:1]]) for x in inputs)
    assert torch.equal(outputs(exported, more), outputs(run.student, more))
