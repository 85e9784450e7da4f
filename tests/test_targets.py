"""Students for other runtimes: their grids, what is rounded, and files that keep the rules and give what they give."""

import functools

import onnx
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from datafree import Recipe, Run, compress, export_onnx, load, load_model, save
from datafree import graph as g
from datafree.export.onnx.export import ExportError
from datafree.export.onnx.onnxruntime import run_module
from datafree.export.onnx.target_rules import violations
from datafree.recipe import TARGETS, Nearest
from datafree.records import WeightSpec
from datafree.solve import fused_operand
from datafree.solve.mending import remedies
from datafree.student import DEQUANTIZE, DEQUANTIZE_ROWS, QUANTIZE
from jobs import make_job
from nets import FEW_FAST, NETS, conv

CHEAP = ["signal.kind=propagated", "signal.images=4", "solve.method=nearest", "solve.mend=false"]
OTHERS = pytest.mark.parametrize("target", [name for name in TARGETS if name != "onnxruntime"])
DECOMPOSED = ("squeeze and excitation", "activations")  # SiLU, hardswish, GELU: several operators in a file


@functools.cache
def made(name, target, *settings):
    model, inputs = NETS[name]()
    return compress(model, Recipe.preset("w8a8").updated([*CHEAP, f"target={target}", *settings]), inputs), inputs


def nodes(run, kind):
    return [node for node in run.student.graph.nodes if node.target is kind]


def by_label(run, name):
    return next(node for node in run.student.graph.nodes if g.note(node).layer == name)


# Every net


@OTHERS
@pytest.mark.parametrize("name", FEW_FAST)
def test_the_file_keeps_the_rules_and_is_the_student(name, target, tmp_path):
    run, inputs = made(name, target)
    check = export_onnx(run, tmp_path / "net.onnx", probes=inputs)
    found = [note for note in check.notes if "wants it" in note]
    assert found == [] or (name in DECOMPOSED and target == "arm")
    step = min((n.args[1] for n in g.outputs(run.student) if n.target is DEQUANTIZE), default=0.0)
    assert check.sqnr_db > check.quantization_db or check.largest_difference <= 1.01 * step
    assert onnx.load(tmp_path / "net.onnx").opset_import[0].version == TARGETS[target].opset


@pytest.mark.parametrize("name", FEW_FAST)
def test_files_as_they_always_were_keep_their_rules(name, tmp_path):
    run, inputs = made(name, "onnxruntime")
    export_onnx(run, tmp_path / "net.onnx", probes=inputs)
    assert violations(onnx.load(tmp_path / "net.onnx"), TARGETS["onnxruntime"]) == []


# Grids


@pytest.mark.parametrize("target", ["arm", "tensorrt"])
def test_signed_grids_take_the_whole_byte(target):
    for node in nodes(made("residual", target)[0], QUANTIZE):
        assert node.args[3:] == (-128, 127, torch.int8)


def test_without_zero_points_every_grid_is_symmetric_and_coarser():
    usual, symmetric = (
        {g.note(n).grid: n.args for n in nodes(made("residual", t)[0], QUANTIZE)} for t in ("generic", "tensorrt")
    )
    assert all(args[2] == 0 for args in symmetric.values())
    never_negative = [key for key, args in usual.items() if args[2] == 0 and key in symmetric]
    assert never_negative
    assert all(1.5 < symmetric[key][1] / usual[key][1] < 2.5 for key in never_negative), "127 steps instead of 255"


def test_signed_grids_are_unsigned_ones_moved_by_128():
    usual, moved = ({g.note(n).grid: n.args for n in nodes(made("chain", t)[0], QUANTIZE)} for t in ("generic", "arm"))
    assert all(moved[key][2] == args[2] - 128 for key, args in usual.items())
    assert all(moved[key][1] == pytest.approx(args[1], rel=2e-3) for key, args in usual.items()), "but for ties"


def test_runtimes_of_one_kind_have_one_student():
    (usual, inputs), (generic, _) = made("residual", "onnxruntime"), made("residual", "generic")
    assert torch.equal(run_module(usual.student, inputs)[0], run_module(generic.student, inputs)[0])


# What is rounded


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
def test_a_layer_that_is_computed_with_a_sum_is_not_rounded(target):
    run = made("residual", target)[0]
    sums = [node for node in run.student.graph.nodes if len(g.summands(node)) == 2]
    for node in sums:
        assert sorted(x.target is DEQUANTIZE for x in g.summands(node)) == [False, True]
        fused = fused_operand(node)
        assert fused is not None and g.note(fused).layer
    everywhere = made("residual", "generic")[0]
    assert len(nodes(everywhere, QUANTIZE)) - len(nodes(run, QUANTIZE)) >= len(sums) > 0


def test_of_two_layers_that_are_summed_the_last_is_not_rounded():
    run = made("residual with projection", "tensorrt")[0]
    sums = [node for node in run.student.graph.nodes if len(g.summands(node)) == 2]
    fused = {fused_operand(node) for node in sums}
    order = list(run.student.graph.nodes)
    for node in sums:
        rounded = next(x for x in g.summands(node) if x not in fused)
        assert rounded.target is DEQUANTIZE and order.index(rounded) < order.index(node)


def test_pooling_and_concatenations_are_rounded_where_layers_read_them_alone():
    run = made("concat", "tensorrt")[0]
    joined = [node for node in run.student.graph.nodes if g.operator_of(node).channels == "joins"]
    assert joined and all(x.target is not DEQUANTIZE or len(x.users) > 1 for n in joined for x in n.all_input_nodes)


@pytest.mark.parametrize("name", ["residual", "two outputs", "squeeze and excitation"])
def test_everything_is_rounded_for_arm_the_outputs_too(name):
    run, inputs = made(name, "arm")
    assert all(node.target is DEQUANTIZE for node in g.outputs(run.student))
    scales = [node.args[1] for node in g.outputs(run.student)]
    for value, scale in zip(tree_leaves(run.student(*inputs)), scales, strict=True):
        assert torch.allclose(value / scale, (value / scale).round(), atol=1e-3)
        reach = float((value / scale).max() - (value / scale).min())
        assert name == "two outputs" or reach < 250, "logits do not end where their byte does"


def test_linear_layers_have_one_scale_for_arm_and_are_not_mended_otherwise():
    run = made("linear after flatten", "arm", "solve.mend=true")[0]
    linear = [node for node in run.student.graph.nodes if node.target is g.aten.linear.default]
    assert linear and all(g.weight_node(node).target is DEQUANTIZE for node in linear)
    convolutions = [n for n in run.student.graph.nodes if g.note(n).layer and n not in linear]
    assert all(g.weight_node(node).target is DEQUANTIZE_ROWS for node in convolutions)


def test_one_scale_is_kept_by_every_remedy():
    for bits in (4, 8):
        job = make_job(Nearest(), spec=WeightSpec(bits, False, one_scale=True))
        assert not any(other.spec.per_channel for _, other in remedies(job))
        assert any(other.spec.bits is None for _, other in remedies(job))


# Files


def test_tensorrt_keeps_activations_in_front_of_quantize_nodes_and_biases_in_float(tmp_path):
    run, inputs = made("depthwise inverted residual", "tensorrt")
    export_onnx(run, tmp_path / "net.onnx", probes=inputs)
    graph = onnx.load(tmp_path / "net.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert "Clip" in kinds or "Relu" in kinds
    stored = {t.name: t.data_type for t in graph.initializer}
    assert onnx.TensorProto.INT32 not in stored.values() and onnx.TensorProto.INT8 in stored.values()


@pytest.mark.parametrize("target", ["tensorrt", "arm"])
def test_weights_in_4_bits_are_refused(target, tmp_path):
    run, _ = made("chain", target)
    with pytest.raises(ExportError, match=f"target '{target}' takes no INT4 weights; leave int4 out"):
        export_onnx(run, tmp_path / "net.onnx", int4=True, opset=21)
    assert not list(tmp_path.iterdir())


def test_what_breaks_a_rule_is_noted(tmp_path):
    run, inputs = made("activations", "arm")
    check = export_onnx(run, tmp_path / "net.onnx", probes=inputs)
    broken = [note for note in check.notes if "wants it" in note]
    assert "not as arm wants it: Erf gelu.erf gives floats that are not rounded" in broken
    assert len(broken) == 5 and broken[-1] == "not as arm wants it: 1 more nodes", "lines do not grow with the network"


@pytest.mark.parametrize("target", ["tensorrt", "arm"])
def test_runs_and_packed_files_keep_signed_grids(target, tmp_path):
    run, inputs = made("concat", target)
    run.save(tmp_path / "run")
    save(run, tmp_path / "net.safetensors")
    for again in (Run.load(tmp_path / "run").student, load(tmp_path / "net.safetensors")):
        assert torch.equal(run_module(again, inputs)[0], run_module(run.student, inputs)[0])


@pytest.mark.parametrize("target", ["openvino", "tensorrt", "arm"])
def test_a_file_is_written_back_for_its_target(target, tmp_path):
    torch.manual_seed(0)
    model, example = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU()).eval(), torch.randn(2, 3, 16, 16)
    run = compress(model, Recipe.preset("w8a8").updated(CHEAP), example)
    export_onnx(Run(**{**vars(run), "student": run.teacher}), tmp_path / "float.onnx")
    network, shape = load_model(str(tmp_path / "float.onnx"))
    again = compress(network, Recipe.preset("w8a8").updated([*CHEAP, f"target={target}"]), shape)
    check = export_onnx(again, tmp_path / "net.onnx")
    assert not [note for note in check.notes if "wants it" in note]
