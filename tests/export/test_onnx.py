"""ONNX files: each is run in ONNX Runtime and gives what the student gives, from integers under the user's names."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from datafree import Recipe, compress
from datafree import graph as g
from datafree.export.onnx.check import _judged
from datafree.export.onnx.export import ExportError, export_onnx
from datafree.export.onnx.fusion import fuse
from datafree.export.onnx.onnxruntime import RIGHT, largest_sums, run_file, run_module, session
from datafree.export.onnx.optimized import kinds_of_nodes
from datafree.export.onnx.qdq import four_bit_offsets
from datafree.export.onnx.translate import translate
from datafree.extras import install
from datafree.graph.capture import trace
from nets import NETS, THREE_FAST, block, compressed, conv, head

CHEAP = "signal: {kind: propagated, images: 2}\nsolve: {method: nearest, clip: false}\nequalize: off\n"
EIGHT = CHEAP + "weights: {bits: 8}\nactivations: {bits: 8}\n"
FOUR = CHEAP + "weights: {bits: 4, symmetric: false}\nactivations: {bits: 4}\n"
DEPTHWISE = FOUR.replace("equalize: off", "equalize: depthwise")
FREE = EIGHT.replace("equalize: off", "equalize: free").replace("{bits: 8}", "{bits: 8, per: tensor}", 1)
WEIGHTS = CHEAP + "weights: {bits: 8}\nactivations: {bits: null}\n"
SPARSE = CHEAP + "weights: {bits: null}\nactivations: {bits: null}\nprune: {sparsity: 0.5}\n"
CHANNELS = CHEAP + "weights: {bits: 8}\nactivations: {bits: 8}\nprune: {sparsity: 0.4, pattern: channels}\n"

EVERY_NET = pytest.mark.parametrize("name", THREE_FAST)


def made(name, text=EIGHT):
    return compressed(name, text), NETS[name]()[1]


@pytest.fixture
def exported(tmp_path):
    """Export a net and read the file back: (check, model, inputs, run)."""

    def export(name, text=EIGHT, **options):
        run, inputs = made(name, text)
        check = export_onnx(run, tmp_path / "net.onnx", probes=inputs, force=True, **options)
        return check, onnx.load(tmp_path / "net.onnx"), inputs, run

    return export


def tensors(model):
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def operators(model):
    return [n.op_type for n in model.graph.node]


def step(run):
    """The largest step of a grid between layers, a bound of what one different rounding does there."""
    return max(n.args[1] for n in run.student.graph.nodes if "quantize_per_tensor" in str(n.target))


def test_a_network_that_is_too_large_for_one_file_has_its_weights_beside_it(tmp_path):
    run, inputs = made("residual")
    check = export_onnx(run, tmp_path / "net.onnx", probes=inputs, largest=1000)
    whole = export_onnx(run, tmp_path / "whole.onnx", probes=inputs)
    model = onnx.load(tmp_path / "net.onnx", load_external_data=False)
    outside = [t for t in model.graph.initializer if onnx.external_data_helper.uses_external_data(t)]
    assert {entry.value for t in outside for entry in t.external_data if entry.key == "location"} == {"net.onnx.data"}
    assert check.bytes == sum((tmp_path / name).stat().st_size for name in ("net.onnx", "net.onnx.data")) > whole.bytes
    assert check.sqnr_db == whole.sqnr_db
    stored = tensors(onnx.load(tmp_path / "whole.onnx"))
    for name, value in tensors(onnx.load(tmp_path / "net.onnx")).items():
        np.testing.assert_array_equal(value, stored[name])


def test_both_files_are_replaced_or_gone(tmp_path):
    run, inputs = made("residual")
    path, beside = tmp_path / "net.onnx", tmp_path / "net.onnx.data"
    beside.write_bytes(b"of someone else")
    with pytest.raises(ExportError, match=r"net\.onnx\.data exists, and weights of more than .* choose another name"):
        export_onnx(run, path, probes=inputs, largest=1000)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx.data"]
    export_onnx(run, path, probes=inputs)
    assert beside.read_bytes() == b"of someone else"
    for largest, names in ((1000, [path, beside]), (1000, [path, beside]), (10**6, [path])):
        export_onnx(run, path, probes=inputs, largest=largest, force=True)
        assert sorted(tmp_path.iterdir()) == names
        onnx.checker.check_model(str(path))


# Equal outputs


@EVERY_NET
@pytest.mark.parametrize("text", [EIGHT, FOUR], ids=["w8a8", "w4a4"])
def test_the_file_gives_what_the_student_gives(name, text, exported):
    check, model, inputs, run = exported(name, text)
    assert check.sqnr_db > check.quantization_db + 10
    assert check.largest_difference <= 2 * step(run)
    assert check.float_nodes or check.sqnr_db > 90, "nothing but integers: the very same ones"
    assert check.num_probes == len(inputs[0])
    assert model.opset_import[0].version == 21 and model.ir_version == 10


@EVERY_NET
def test_opset_13_gives_the_same(name, exported):
    check, model, *_ = exported(name, opset=13)
    assert check.sqnr_db > check.quantization_db + 10
    assert model.opset_import[0].version == 13 and model.ir_version == 7


@EVERY_NET
def test_a_float_network_is_plain_float(name, exported):
    check, model, _, run = exported(name, SPARSE)
    assert check.sqnr_db > 80
    assert not {"QuantizeLinear", "DequantizeLinear"} & {*operators(model)}
    assert any("no maintained CPU runtime is faster" in note for note in check.notes)
    stored = tensors(model)
    assert all(np.array_equal(stored[f"{r.name}.weight"].ravel(), r.weight.numpy().ravel()) for r in run.layers)


@pytest.mark.parametrize("name", ["chain", "two inputs", "channel shuffle and split", "linear after flatten"])
def test_any_batch_size_runs(name, exported, tmp_path):
    _, model, inputs, run = exported(name)
    assert {d.dim_param for v in model.graph.input for d in v.type.tensor_type.shape.dim[:1]} == {"batch"}
    larger = tuple(torch.cat([x, x[:1]]) for x in inputs)
    found = run_file(session(tmp_path / "net.onnx"), larger)
    with torch.no_grad():
        assert torch.allclose(found[0], run.student(*larger), atol=2 * step(run))


def test_vectors_of_equalization_are_kept(exported):
    check, _, _, run = exported("squeeze and excitation", FREE)
    assert any(n.target is g.aten.mul.Tensor and "v_i" in str(n.args[1]) for n in run.student.graph.nodes)
    assert check.sqnr_db > check.quantization_db + 10


# What is stored


@pytest.mark.parametrize("name", ["chain", "residual", "depthwise inverted residual", "two inputs", "shared module"])
@pytest.mark.parametrize("text", [EIGHT, FOUR], ids=["w8a8", "w4a4"])
def test_parameters_are_integers_under_the_users_names(name, text, exported):
    _, model, _, run = exported(name, text)
    stored, nodes = tensors(model), {n.name: n for n in model.graph.node}
    for layer in run.layers:
        assert stored[f"{layer.name}.weight"].dtype == np.int8 and stored[f"{layer.name}.bias"].dtype == np.int32
        bias, zeros = np.split(stored[f"{layer.name}.bias"], [len(layer.bias)])  # zeros: see test_pad_channels
        assert np.array_equal(bias, g.get_tensor(run.student, f"{layer.name}.bias").numpy()) and not zeros.any()
        assert stored[f"{layer.name}.weight_scale"].dtype == np.float32
        assert nodes[layer.name].op_type in ("Conv", "Gemm")
    floats = {name for name, value in stored.items() if value.dtype == np.float32}
    assert all("_scale" in name for name in floats), "no float copy of anything is left"


def test_scales_of_weights_per_tensor_are_scalars(exported):
    text = EIGHT.replace("weights: {bits: 8}", "weights: {bits: 8, per: tensor}")
    check, model, *_ = exported("residual", text)
    assert tensors(model)["0.conv.weight_scale"].shape == ()
    assert check.sqnr_db > check.quantization_db + 10


def test_names_are_those_of_forward(exported):
    _, model, *_ = exported("dict output")
    assert [v.name for v in model.graph.input] == ["x"]
    assert [v.name for v in model.graph.output] == ["classes", "shallow"]
    _, model, *_ = exported("two outputs")
    assert [v.name for v in model.graph.output] == ["output_0", "output_1"]
    _, model, *_ = exported("two inputs")
    assert [v.name for v in model.graph.input] == ["image", "depth"]
    assert [v.name for v in model.graph.output] == ["output"]


class Outputs(nn.Module):
    """One value twice, in a nested structure, beside nothing."""

    def __init__(self):
        super().__init__()
        self.first, self.last = block(3, 6), head(6)

    def forward(self, x):
        y = self.first(x)
        return {"maps": [y, y.contiguous()], "none": None, "classes": self.last(y)}


def test_outputs_may_be_nested_and_share_a_value(tmp_path):
    model, x = Outputs().eval(), torch.zeros(1, 3, 8, 8)
    check = export_onnx(compress(model, Recipe.parse(EIGHT), x), tmp_path / "net.onnx")
    found = onnx.load(tmp_path / "net.onnx").graph.output
    assert [v.name for v in found] == ["output_0", "output_1", "output_2"] and check.agreement == 100


def test_metadata_says_where_the_file_is_from(exported):
    _, model, _, run = exported("chain")
    entries = {p.key: p.value for p in model.metadata_props}
    assert Recipe.parse(entries["recipe"]) == run.recipe
    assert entries["seed"] == "0" and entries["input_std"] == str(list(run.input_range.std))
    assert entries["datafree_version"] == model.producer_version
    assert not any(n.metadata_props for n in model.graph.node)


def test_four_bit_weights_are_half_as_large_and_the_same(exported):
    check, model, _, _ = exported("grouped", FOUR)
    smaller, packed, _, _ = exported("grouped", FOUR, int4=True)
    kinds = {t.name: t.data_type for t in packed.graph.initializer}
    assert kinds["1.conv.weight"] == TensorProto.INT4 and kinds["0.conv.weight"] == TensorProto.INT8
    assert smaller.bytes < check.bytes and "slower" in "".join(smaller.notes)
    assert smaller.sqnr_db > smaller.quantization_db + 10
    unpacked = tensors(packed)["1.conv.weight"].astype(int) - tensors(packed)["1.conv.weight_zero_point"].astype(
        int
    ).reshape(-1, 1, 1, 1)
    assert np.array_equal(unpacked, tensors(model)["1.conv.weight"])


def test_zero_points_bring_a_row_of_sixteen_steps_into_four_bits():
    rows = np.array([[-8, 7], [-3, 7], [0, 15], [-15, 0]], np.int8)
    assert four_bit_offsets(rows, rows=True).tolist() == [0, 0, -8, 7]
    assert four_bit_offsets(rows[:2], rows=False).tolist() == 0
    assert four_bit_offsets(rows, rows=False) is None
    assert four_bit_offsets(np.array([[-8, 8]], np.int8), rows=True) is None


# What runtimes fuse


@pytest.mark.parametrize(
    "name",
    ["chain", "residual", "residual with projection", "depthwise inverted residual", "concat", "linear after flatten",
     "shared module", "channel shuffle and split", "dead channels", "padding same", "pools"],
)  # fmt: skip
def test_nothing_is_left_in_float(name, exported):
    check, *_ = exported(name)
    assert check.float_nodes == ()


def test_what_stays_in_float_is_listed(exported):
    check, *_ = exported("squeeze and excitation")
    assert any(line.startswith("Conv ") for line in check.float_nodes)


@pytest.mark.parametrize("text", [FOUR, DEPTHWISE], ids=["off", "depthwise"])
def test_four_bit_layers_run_on_integers_too(text, exported):
    check, model, *_ = exported("depthwise inverted residual", text)
    assert check.float_nodes == ()
    assert "Relu" not in operators(model)
    assert [n.name for n in model.graph.node if n.op_type == "Mul"] == ["input_quantized.in_steps"]


def test_zeros_that_no_convolution_reads_are_padded_as_integers(tmp_path):
    net = nn.Sequential(block(3, 4), nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(3, 2), head(4)).eval()
    check = export_onnx(compress(net, Recipe.preset("w8a8"), torch.zeros(1, 3, 8, 8)), tmp_path / "net.onnx")
    (pad,) = [n for n in onnx.load(tmp_path / "net.onnx").graph.node if n.op_type == "Pad"]
    assert pad.input[0].endswith("_quantized.clipped") or pad.input[0].endswith("_quantized")
    assert pad.input[2].endswith("_quantized_zero_point") and check.sqnr_db > 30


def test_what_is_padded_with_another_value_than_zero_is_padded_in_float(exported):
    check, *_ = exported("asymmetric zero padding")
    assert [line for line in check.float_nodes if line.startswith("Pad")] == ["Pad pad_1"]  # pads with 0.5


def test_padding_between_four_bit_layers_runs_on_integers(tmp_path):
    torch.manual_seed(0)
    pad = nn.ZeroPad2d((0, 1, 0, 1))
    model, x = (
        nn.Sequential(block(3, 6), block(6, 6), pad, conv(6, 6, stride=2), head(6)).eval(),
        torch.zeros(1, 3, 8, 8),
    )
    run = compress(model, Recipe.parse(FOUR), x)
    check = export_onnx(run, tmp_path / "net.onnx")
    assert check.float_nodes == () and check.agreement == 100
    with torch.no_grad():
        values = {n: g.execute(n, v) for n, v in g.walk(run.student, (torch.randn(2, 3, 8, 8),)) if n.name == "pad"}
    assert len(next(iter(values.values())).unique()) <= 16


def test_a_multiply_behind_a_layer_moves_into_its_scales(exported):
    check, model, _, run = exported("depthwise inverted residual", DEPTHWISE)
    found = fuse(run.student)
    assert found.factors, "the net has such a multiply"
    scaled = next(iter(found.factors))
    path = str(scaled.args[0].target)
    scales = g.get_tensor(run.student, str(scaled.args[1].target)).numpy()
    assert np.allclose(tensors(model)[f"{path}_scale"][: len(scales)], scales * found.factors[scaled])
    assert check.sqnr_db > check.quantization_db + 10


def test_channels_may_clip_at_ends_of_their_own(tmp_path):
    """A relu6 whose channels are multiplied by factors below 1 ends below the grid's end, channel by channel."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = block(3, 6, act=nn.ReLU6), nn.Sequential(conv(6, 6), nn.ReLU(), head(6))
            self.register_buffer("factor", torch.linspace(0.1, 1, 6).view(1, 6, 1, 1))

        def forward(self, x):
            return self.last(self.first(4 * x) * self.factor)

    torch.manual_seed(0)
    model, x = Scaled().eval(), torch.randn(4, 3, 8, 8)
    run = compress(model, Recipe.parse(EIGHT), x)
    check = export_onnx(run, tmp_path / "net.onnx", probes=x)
    assert "Min" in operators(onnx.load(tmp_path / "net.onnx"))
    assert check.sqnr_db > check.quantization_db + 10
    assert not any("Conv" in line for line in check.float_nodes)


def test_grids_below_eight_bits_are_clipped_as_integers(exported):
    check, model, _, _ = exported("chain", FOUR)
    clips = [n for n in model.graph.node if n.op_type == "Clip"]
    stored = tensors(model)
    assert clips and all(stored[n.input[2]].dtype == np.uint8 and stored[n.input[2]] == 15 for n in clips)
    assert any("4-bit weights of" in note for note in check.notes)
    assert any("4-bit activations ride in uint8" in note for note in check.notes)


def test_removed_channels_are_not_in_the_file(exported):
    check, model, *_ = exported("chain", CHANNELS)
    assert tensors(model)["0.conv.weight"].shape[0] < 8
    assert any("removed channels" in note for note in check.notes)
    assert check.float_nodes == () and check.bytes < check.float_bytes + 10_000


def test_the_check_reads_as_a_sentence(exported):
    text = str(exported("chain")[0])
    assert "% equal classes on 2 probe images" in text and "0 nodes in float" in text


def test_what_moves_values_is_listed_with_its_share_of_the_time(exported):
    for name in ("chain", "squeeze and excitation"):
        nodes = exported(name)[0].nodes
        assert {"Mul", "QuantizeLinear"} <= {node.operator for node in nodes if node.kind == "moves"}
        assert all(0 < node.share < 100 for node in nodes) and sum(node.share for node in nodes) <= 100


def test_types_are_followed_through_the_optimized_graph():
    from onnx import helper

    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("Transpose", ["q"], ["t"], name="moved"),
        helper.make_node("DequantizeLinear", ["t", "s", "z"], ["d"]),
        helper.make_node("Relu", ["d"], ["y"], name="act"),
    ]
    inputs = [helper.make_tensor_value_info("x", 1, [1])]
    found = kinds_of_nodes(helper.make_model(helper.make_graph(nodes, "g", inputs, [])))
    kinds = {node.op_type: kind for node, kind in found}
    assert kinds == {"QuantizeLinear": "moves", "Transpose": "moves", "DequantizeLinear": "moves", "Relu": "float"}


# Speed


@EVERY_NET
@pytest.mark.parametrize("text", [EIGHT, FOUR], ids=["w8a8", "w4a4"])
def test_every_node_of_a_file_is_read(name, text, exported):
    graph = exported(name, text)[1].graph
    read = {value for node in graph.node for value in node.input} | {value.name for value in graph.output}
    assert all(read & {*node.output} for node in graph.node)
    assert {t.name for t in graph.initializer} <= read


@pytest.mark.parametrize(
    "text, in_float",
    [(EIGHT, {"0.conv"}), (WEIGHTS, {"0.conv", "1.conv", "2", "4.2"})],
    ids=["w8a8", "weights alone"],
)
def test_integers_of_layers_that_run_in_float_become_floats_once(text, in_float, tmp_path):
    model = nn.Sequential(block(3, 8, act=nn.SiLU), block(8, 8), nn.ConvTranspose2d(8, 4, 2), nn.ReLU(), head(4))
    x = torch.randn(2, 3, 8, 8)
    check = export_onnx(compress(model.eval(), Recipe.parse(text), x), tmp_path / "net.onnx", probes=x)
    written = onnx.load(tmp_path / "net.onnx")
    assert all(tensors(written)[f"{layer}.weight"].dtype == np.int8 for layer in in_float)
    cast = {n.input[0] for n in written.graph.node if n.op_type == "Cast"}
    assert {name.removesuffix(".weight") for name in cast if name.endswith(".weight")} == in_float
    assert not any("weight" in node.name for node in check.nodes), "ONNX Runtime computes none in every run"
    assert check.sqnr_db > 100


def test_the_image_is_rounded_as_the_student_rounds_it(tmp_path):
    """Values beside ties, where x / scale and x * (1 / scale) are different integers."""
    run, inputs = made("chain")
    scale = next(n.args[1] for n in run.student.graph.nodes if "quantize_per_tensor" in str(n.target))
    near = (np.arange(-60, 60)[:, None] + 0.5) * scale * (1 + 2**-24 * np.arange(-4, 5))
    x = torch.from_numpy(np.resize(near, inputs[0].shape).astype(np.float32))
    assert (torch.round(x / scale) != torch.round(x * (1 / scale))).any()
    assert export_onnx(run, tmp_path / "net.onnx", probes=x).sqnr_db > 100


def test_sums_are_right_on_this_processor(tmp_path):
    model, x = largest_sums()
    onnx.save(model, tmp_path / "largest.onnx")
    assert np.all(np.asarray(session(tmp_path / "largest.onnx").run(None, {"x": x})[0]) == RIGHT)


# Probes


@pytest.mark.parametrize("name", ["chain", "two inputs"])
def test_probes_are_made_where_none_are_given(name, tmp_path):
    run, _ = made(name)
    check = export_onnx(run, tmp_path / "net.onnx")
    assert check.num_probes == 32 and check.sqnr_db > check.quantization_db + 10


# Errors


def test_a_file_that_is_there_is_kept(tmp_path):
    run, inputs = made("chain")
    path = tmp_path / "net.onnx"
    path.write_text("precious")
    with pytest.raises(
        ExportError, match=r"net\.onnx exists; choose another name, or force=True \(--force\) to replace it"
    ):
        export_onnx(run, path, probes=inputs)
    assert path.read_text() == "precious"
    with pytest.raises(ExportError, match="is a directory; give the name of a file in it"):
        export_onnx(run, tmp_path, probes=inputs, force=True)


def test_other_opsets_are_refused(tmp_path):
    run, inputs = made("chain")
    with pytest.raises(ExportError, match="opset 11 is not one that is written; allowed are 13, 21"):
        export_onnx(run, tmp_path / "net.onnx", opset=11, probes=inputs)
    with pytest.raises(ExportError, match="opset 13 has no INT4; export with opset=21, or without int4"):
        export_onnx(run, tmp_path / "net.onnx", opset=13, int4=True, probes=inputs)


def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path):
    run, inputs = made("chain")
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"could not be written: .*; free some space or choose another place"):
        export_onnx(run, tmp_path / "file" / "net.onnx", probes=inputs)


def test_a_file_that_is_not_the_student_is_an_error_and_is_not_left(tmp_path):
    run, inputs = made("chain")
    wrong = tuple(torch.full_like(x, torch.nan) for x in inputs)
    with pytest.raises(ExportError, match=r"the file is only .* dB near the student.*nothing was written"):
        export_onnx(run, tmp_path / "net.onnx", probes=wrong)
    assert not list(tmp_path.iterdir())


def test_a_student_that_hangs_on_the_last_bit_is_said_to(exported):
    check, _, inputs, run = exported("chain")
    wanted = run_module(run.student, inputs)
    moved = [w + 1e-3 * w.square().mean().sqrt() for w in wanted]  # 60 dB
    near = _judged(replace(check, sqnr_db=check.quantization_db + 1), run, inputs, moved)
    assert near.notes[-1].startswith("rounding in float sums alone moves the student by as much as 60.0 dB")


def test_a_damaged_file_is_one_line(tmp_path):
    run, inputs = made("chain")
    path = tmp_path / "net.onnx"
    export_onnx(run, path, probes=inputs)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ExportError, match=r"net\.onnx does not run in ONNX Runtime: .*it was cut short, altered"):
        session(path)


def written(module, x, opset=21):
    return translate(trace(module, x), opset=opset)


IMAGE, ZEROS, MASK = torch.zeros(2, 4, 8, 8), torch.zeros(4), torch.ones(8, 8).tril()


def calling(function):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.function = conv(4, 4), function

        def forward(self, x):
            return self.function(self.conv(x))

    return Net().eval()


def each_its_own(x):
    """A convolution of every image with itself, as conditional convolutions are computed."""
    rows = x.flatten(0, 1)
    return nn.functional.conv2d(rows[None], rows[:, None, :3, :3], groups=4 * x.shape[0])


def test_an_operator_the_opset_lacks_names_the_opset_that_has_it():
    with pytest.raises(
        ExportError, match=r"needs ONNX LayerNormalization, which opset 13 lacks; it came with opset 17: export with"
    ):
        written(calling(nn.LayerNorm(8)), IMAGE, opset=13)


@pytest.mark.parametrize(
    "function, why",
    [
        (lambda x: torch.cumsum(x, 1), "no ONNX operator is known for it"),
        (lambda x: x.double(), "the network computes in torch.float64 there"),
        (lambda x: torch.roll(x, 1), "it rolls the flattened tensor"),
        (lambda x: nn.functional.batch_norm(x, None, None, training=True), "it normalises by the statistics of the b"),
        (lambda x: nn.functional.instance_norm(x, ZEROS, ZEROS + 1, use_input_stats=False), "it uses running stat"),
        (lambda x: torch.ops.aten.elu(x, 1.0, 2.0), "scale 2.0 and input_scale 1"),
        (lambda x: nn.functional.avg_pool2d(x, 2, divisor_override=3), "divisor_override"),
        (lambda x: nn.functional.adaptive_max_pool2d(x, 3), r"windows of unequal size, \[8, 8\] to \[3, 3\]"),
        (lambda x: x[:1].expand(x.shape[0], 4, 8, 8), "it repeats a tensor along the batch"),
        (lambda x: torch.linalg.vector_norm(x, 3, (2, 3)), "a norm of order 3"),
        (each_its_own, "what it does depends on the size of the batch"),
        (lambda x: x.var((0, 2)), "it reaches over the batch"),
        (lambda x: nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True), "is_causal or enable_gqa"),
        (lambda x: nn.functional.scaled_dot_product_attention(x, x, x, MASK > 0), "a mask that is not of float32"),
    ],
    ids=["cumsum", "double", "roll", "batch norm", "instance norm", "elu", "divisor", "unequal windows", "expand",
         "norm", "conditional", "variance", "causal", "mask"],
)  # fmt: skip
def test_an_operator_that_cannot_be_written_is_named(function, why):
    with pytest.raises(ExportError, match=rf"cannot be written to ONNX opset 21: {why}.*replace it in the model's"):
        written(calling(function), IMAGE)


@pytest.mark.parametrize(
    "function",
    [
        nn.GELU(approximate="tanh"), nn.Mish(), nn.ELU(), nn.GroupNorm(2, 4), nn.LayerNorm((4, 8, 8)), nn.Hardswish(),
        nn.Upsample(scale_factor=2), nn.Upsample(size=(12, 15), mode="bilinear"),
        nn.Upsample(scale_factor=1.3, mode="bilinear"), nn.PixelShuffle(2),
        nn.Upsample(size=(15, 15), mode="bilinear", align_corners=True), nn.ChannelShuffle(2), nn.Softmax(1),
        nn.AdaptiveMaxPool2d(2), nn.AdaptiveAvgPool2d(4), nn.AdaptiveAvgPool2d((3, 11)),
        lambda x: nn.functional.adaptive_avg_pool1d(x.flatten(2), 7),
        nn.ReflectionPad2d((1, 2, 0, 1)), nn.CircularPad2d(1),
        lambda x: torch.stack(x.split(2, 1), 1).sum(1), lambda x: x.flip(3), lambda x: x[:, 1:3, ::2] * x[:, :1, ::2],
        lambda x: x.mean((2, 3)), lambda x: x.mean(1, keepdim=True),
        lambda x: x.mean(1).unsqueeze(1) + x.clamp_min(0.1),
        lambda x: x.permute(0, 2, 3, 1) @ x.permute(0, 2, 1, 3), nn.Linear(8, 5),
        lambda x: torch.add(x, x.abs().sqrt(), alpha=2),
        lambda x: x.clone().unflatten(1, (2, 2)).flatten(2, 3),
        lambda x: x.reshape(x.shape[0], -1, 8), lambda x: x[:, :1].expand(-1, 4, -1, -1) - x.select(1, 2).unsqueeze(1),
        nn.SELU(), nn.CELU(2.0), nn.Softplus(), nn.Softplus(2.0), lambda x: 3 - x, lambda x: x.amax((2, 3)),
        lambda x: x.roll((1, -3), (2, 3)), lambda x: x.narrow(1, 1, 2), lambda x: x.unbind(1)[2],
        nn.InstanceNorm2d(4, affine=True), lambda x: x[:, :1].squeeze(),
        lambda x: (x, x), lambda x: torch.rsqrt(x.square() + 1) ** 2,
        lambda x: x.var((2, 3), unbiased=False, keepdim=True) + x.var(1, keepdim=True),
        lambda x: x.var(2, unbiased=False),
        nn.functional.normalize, lambda x: x.norm(p=1, dim=(2, 3)), lambda x: torch.linalg.vector_norm(x, dim=(2, 3)),
        nn.RMSNorm(8), lambda x: nn.functional.rms_norm(x, (8, 8)), lambda x: torch.max(x, -x) - torch.min(x, x * 2),
        lambda x: nn.functional.conv3d(x[:, None], torch.ones(2, 1, 1, 3, 3), padding=(0, 1, 1)),
        lambda x: torch.addcmul(x, x, x) + torch.addcmul(x, x, x, value=2),
        lambda x: torch.einsum("nchw,nchv->ncwv", x, x), lambda x: nn.functional.scaled_dot_product_attention(x, x, -x),
        lambda x: nn.functional.scaled_dot_product_attention(x, x, x, MASK, scale=0.3),
    ],
)  # fmt: skip
def test_operators_mean_in_onnx_what_they_mean_in_torch(function, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 8, 8)
    graph = trace(calling(function), x)
    onnx.save(translate(graph, opset=21), tmp_path / "net.onnx")
    with torch.no_grad():
        wanted = torch.utils._pytree.tree_leaves(graph(x))
    found = run_file(session(tmp_path / "net.onnx"), (x,))
    assert all(torch.allclose(f, w, atol=1e-5) for f, w in zip(found, wanted, strict=True))


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_missing_packages_name_the_extra(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExportError, match=re.escape(f"{package} is not installed; {install('onnx')}")):
        export_onnx(compressed("chain", EIGHT), tmp_path / "net.onnx")


@pytest.mark.slow
def test_the_module_loads_no_onnx():
    code = "import sys, datafree.export.onnx; print(*[m for m in ('onnx', 'onnxruntime') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == ""
