"""What runtimes refuse: a file that keeps every rule, and for each rule one that breaks it."""

import functools
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from datafree import Recipe, compress
from datafree.export.onnx.target_rules import RULES, violations
from datafree.export.onnx.translate import translate
from datafree.recipe import TARGETS
from nets import NETS

CHEAP = ["signal.kind=propagated", "signal.images=2", "solve.method=nearest", "solve.mend=false"]


@functools.cache
def text(name, target, preset):
    model, inputs = NETS[name]()
    run = compress(model, Recipe.preset(preset).updated([*CHEAP, f"target={target}"]), inputs)
    return translate(run.student, opset=21, target=TARGETS[target]).SerializeToString()


def written(name, target, preset="w8a8"):
    return onnx.ModelProto.FromString(text(name, target, preset))


def first(model, kind, number=0):
    return [node for node in model.graph.node if node.op_type == kind][number]


def store(model, name, value):
    """Another value under a stored tensor's name."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(value), name))


def stored(model, name):
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def dequantized(model, conv, place):
    """The node that dequantizes a layer's weight or bias."""
    return next(node for node in model.graph.node if node.output[0] == conv.input[place])


def older(model):
    model.opset_import[0].version = 11


def two_scales(model):
    store(model, first(model, "QuantizeLinear").input[1], np.float32([0.1, 0.2]))


def widest_weight(model):
    weight = dequantized(model, first(model, "Conv"), 1)
    store(model, weight.input[0], np.full_like(stored(model, weight.input[0]), -128))


def moved_weight(model):
    weight = dequantized(model, first(model, "Conv"), 1)
    store(model, weight.input[2], stored(model, weight.input[2]) + np.int8(1))


def unsigned_weight(model):
    weight = dequantized(model, first(model, "Conv"), 1)
    for name in (weight.input[0], weight.input[2]):
        store(model, name, stored(model, name).astype(np.uint8))


def other_bias_scale(model):
    bias = dequantized(model, first(model, "Conv"), 2)
    store(model, bias.input[1], stored(model, bias.input[1]) * np.float32(1.01))


def floats_read(model):
    first(model, "Conv", 1).input[0] = model.graph.input[0].name


def rounded_early(model):
    """A pair between the first layer and its activation, as the pair behind that."""
    conv, relu = first(model, "Conv"), first(model, "Relu")
    assert relu.input[0] == conv.output[0]
    grid = first(model, "QuantizeLinear", 1).input[1:]
    model.graph.node.append(helper.make_node("QuantizeLinear", [conv.output[0], *grid], ["early_q"], "early_q"))
    model.graph.node.append(helper.make_node("DequantizeLinear", ["early_q", *grid], ["early"], "early"))
    relu.input[0] = "early"


def nothing_rounded(model):
    add, made = first(model, "Add"), {o: n for n in model.graph.node for o in n.output}
    for place, name in enumerate(add.input):
        if made[name].op_type == "DequantizeLinear":
            add.input[place] = made[made[name].input[0]].input[0]


def as_it_is(model):
    pass


def other_sigmoid_grid(model):
    gates = {node.output[0] for node in model.graph.node if node.op_type == "Sigmoid"}
    quantize = next(node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] in gates)
    store(model, quantize.input[1], np.float32(1 / 200))


BROKEN = {  # net, whose file, what is done to it, for whom, what is said
    "opset": ("chain", "generic", older, "generic", "opset 11 has no scale a channel; 13 is the first"),
    "unsigned": ("chain", "generic", as_it_is, "arm", "input_quantized is of uint8, not int8"),
    "signed": ("chain", "arm", as_it_is, "generic", "input_quantized is of int8, not uint8"),
    "zero point": ("chain", "arm", as_it_is, "tensorrt", "has the zero_point -128, not 0"),
    "scales": ("chain", "generic", two_scales, "generic", "input_quantized has 2 scales, not one"),
    "input": ("chain", "generic", as_it_is, "arm", "input_quantized is dequantized with another scale"),
    "weights beyond": ("chain", "generic", widest_weight, "generic", "0.conv has weights beyond -127..127"),
    "weights moved": ("chain", "generic", moved_weight, "generic", "0.conv has weights with a zero_point other"),
    "weights unsigned": ("chain", "generic", unsigned_weight, "generic", "0.conv has weights of uint8, not int8"),
    "linear": ("chain", "generic", as_it_is, "arm", "has 5 scales of weights, not one"),
    "bias integers": ("chain", "generic", as_it_is, "tensorrt", "0.conv has a bias of integers, not float"),
    "bias float": ("chain", "tensorrt", as_it_is, "arm", "0.conv has a bias of float, not int32"),
    "bias scale": ("chain", "generic", other_bias_scale, "generic", "0.conv has a bias whose scale is not input scale"),
    "floats": ("chain", "generic", floats_read, "generic", "has integer weights and reads floats"),
    "activation": ("chain", "tensorrt", rounded_early, "tensorrt", "0.conv is rounded in front of its Relu"),
    "sum": ("residual", "generic", as_it_is, "openvino", "add reads a layer that was rounded; only its other"),
    "no sum": ("residual", "tensorrt", nothing_rounded, "tensorrt", "add reads no rounded operand; that which comes"),
    "logits": ("chain", "generic", as_it_is, "arm", "gives floats that are not rounded"),
    "one grid": ("concat", "generic", as_it_is, "arm", "Concat cat reads and gives values of other grids"),
    "own grid": (
        "squeeze and excitation", "arm", other_sigmoid_grid, "arm", "gives values of another grid than scale",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name, source, change, target, message", BROKEN.values(), ids=BROKEN)
def test_each_rule_is_broken_by_a_file(name, source, change, target, message):
    model = written(name, source)
    before = violations(model, TARGETS[target])
    change(model)
    found = violations(model, TARGETS[target])
    assert any(message in line for line in found), found
    assert change is as_it_is or not any(message in line for line in before)


def test_integers_are_read_by_nothing_else_where_that_is_a_rule():
    model = written("depthwise inverted residual", "generic", "w4a4")
    strict = replace(TARGETS["generic"], integer_operators=False)
    assert any("reads the integers of" in line for line in violations(model, strict))
    assert not violations(model, TARGETS["generic"])


def test_weights_in_4_bits_are_taken_where_the_row_says_so():
    model = written("chain", "generic", "w4a8")
    weight = dequantized(model, first(model, "Conv", 1), 1)
    values = np.clip(stored(model, weight.input[0]), -8, 7)
    packed = helper.make_tensor(weight.input[0], TensorProto.INT4, values.shape, values.flatten().tolist())
    next(t for t in model.graph.initializer if t.name == weight.input[0]).CopyFrom(packed)
    assert not violations(model, TARGETS["generic"])
    refused = violations(model, replace(TARGETS["generic"], int4=False))
    assert [line for line in refused if "has weights of int4, not int8" in line]


@pytest.mark.parametrize("target", TARGETS)
def test_a_float_network_breaks_no_rule_of_integers(target):
    model, inputs = NETS["chain"]()
    run = compress(model, Recipe.preset("w8a8").updated([*CHEAP, f"target={target}"]), inputs)
    found = violations(translate(run.teacher, opset=21), TARGETS[target])
    assert all("gives floats that are not rounded" in line for line in found)


def test_every_rule_says_what_it_is():
    assert all(rule.__doc__ for rule in RULES)
