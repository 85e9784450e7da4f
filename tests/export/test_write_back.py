"""Students written into the ONNX file their network came from: the same answers, and all that was not touched stays."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from datafree import Recipe, compress, load_model
from datafree.export.onnx.export import ExportError, export_onnx
from datafree.export.onnx.onnxruntime import run_file, session, sqnr
from datafree.export.onnx.translate import translate
from datafree.graph.capture import trace
from datafree.models import ModelError
from datafree.run import Run
from datafree.teacher.batchnorm import fold_batchnorm_
from nets import NETS

CHEAP = "signal: {kind: propagated, images: 2}\nsolve: {method: nearest, clip: false}\nequalize: off\n"
EIGHT = CHEAP + "weights: {bits: 8}\nactivations: {bits: 8}\n"
FOUR = CHEAP + "weights: {bits: 4, symmetric: false}\nactivations: {bits: 4}\n"
SPARSE = CHEAP + "weights: {bits: null}\nactivations: {bits: null}\nprune: {sparsity: 0.5}\n"
NEIGHBOURS = CHEAP + "weights: {bits: null}\nactivations: {bits: null}\nprune: {pattern: '2:4'}\n"
CHANNELS = CHEAP + "weights: {bits: 8}\nactivations: {bits: 8}\nprune: {sparsity: 0.4, pattern: channels}\n"
FAST = ("residual", "squeeze and excitation", "channel shuffle and split", "pools")
OTHERS = [n for n in NETS if n not in ("in place through a view", "two inputs", *FAST)]
EVERY_NET = pytest.mark.parametrize("name", [*FAST, *(pytest.param(n, marks=pytest.mark.slow) for n in OTHERS)])


def floats(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def node(operator, inputs, output, **attributes):
    made = helper.make_node(operator, inputs.split(" "), [output], name=f"/{output}/{operator}", **attributes)
    made.doc_string = f"makes {output}"
    return made


def a_file(path, *, opset=17, sides=("batch", 3, "height", "width")):
    """Three convolutions, the first with BatchNorm, a residual sum, an upsampling to the size of the input, a score."""
    norm = {"bn.weight": 1 + 0.1 * floats(4), "bn.bias": floats(4), "bn.mean": floats(4), "bn.var": floats(4) ** 2}
    constants = {
        "w1": floats(4, 3, 3, 3),
        "w2": floats(4, 4, 3, 3, seed=1),
        "b2": floats(4),
        "w3": floats(4, 4, 1, 1, seed=2),
    }
    constants |= {f"at_{n}": np.array([n]) for n in (0, 1, 2, 4)}
    nodes = [
        node("Conv", "image w1", "c1", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("BatchNormalization", f"c1 {' '.join(norm)}", "n1"), node("Relu", "n1", "r1"),
        node("Conv", "r1 w2 b2", "c2", pads=[1, 1, 1, 1]), node("Add", "c2 r1", "sum"), node("Relu", "sum", "r2"),
        node("Shape", "n1", "n1_shape"), node("Slice", "n1_shape at_0 at_1", "count"), node("Shape", "image", "whole"),
        node("Slice", "whole at_2 at_4", "back"), node("Concat", "count at_4 back", "size", axis=0),
        node("Conv", "r2 w3", "c3"),
        node("Resize", "c3   size", "up", mode="nearest", coordinate_transformation_mode="asymmetric",
             nearest_mode="floor"),
        node("Sigmoid", "up", "scores"),
    ]  # fmt: skip
    stored = [numpy_helper.from_array(np.asarray(v), k) for k, v in {**constants, **norm}.items()]
    image, scores = (
        helper.make_tensor_value_info(n, 1, s) for n, s in (("image", sides), ("scores", ("batch", 4, None, None)))
    )
    graph = helper.make_graph(nodes, "segmenter", [image], [scores], stored, doc_string="of a customer")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model.producer_name = "theirs"
    helper.set_model_props(model, {"labels": "sky, sea"})
    onnx.save(model, path)
    return path


def compressed(path, text=EIGHT, shape=(1, 3, 16, 16)):
    network, example = load_model(str(path), input_shape=shape)
    return compress(network, Recipe.parse(text), example)


@pytest.fixture
def written(tmp_path):
    """Compress a file and write the student back: (run, check, the file, what was written)."""

    def write(text=EIGHT, options=None, **of_file):
        path, out = a_file(tmp_path / "theirs.onnx", **of_file), tmp_path / "ours.onnx"
        run = compressed(path, text)
        return run, export_onnx(run, out, **(options or {})), onnx.load(path), onnx.load(out)

    return write


def by_output(model):
    return {name: n for n in model.graph.node for name in n.output}


@pytest.mark.parametrize(
    "text", [EIGHT, FOUR, SPARSE, NEIGHBOURS, CHANNELS], ids=["w8a8", "w4a4", "sparse", "2:4", "channels"]
)
def test_the_file_gives_what_the_student_gives(text, written):
    _, check, theirs, ours = written(text)
    assert check.sqnr_db > min(check.quantization_db + 10, 80)
    assert len(by_output(ours)) != len(by_output(theirs)) or text in (SPARSE, NEIGHBOURS)


def test_everything_else_stays(written):
    _, _, theirs, ours = written()
    assert ours.graph.input == theirs.graph.input and ours.graph.output == theirs.graph.output
    assert (ours.graph.name, ours.graph.doc_string, ours.producer_name) == ("segmenter", "of a customer", "theirs")
    assert ours.opset_import == theirs.opset_import
    known = {entry.key: entry.value for entry in ours.metadata_props}
    assert known["labels"] == "sky, sea" and known["recipe"]
    before, after = by_output(theirs), by_output(ours)
    for name in ("whole", "back", "size", "scores"):
        assert after[name] == before[name]
    for name in ("c1", "c2", "sum"):
        assert (after[name].name, after[name].doc_string) == (before[name].name, before[name].doc_string)
        assert [after[i].op_type for i in after[name].input[:2]] == ["DequantizeLinear"] * 2
    assert "n1" not in after and after["n1_shape"].input == ["c1"]


def test_open_sizes_stay_open(written, tmp_path):
    written()
    larger = torch.randn(3, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    opened = session(tmp_path / "ours.onnx")
    [found], [float_] = (run_file(s, (larger,)) for s in (opened, session(tmp_path / "theirs.onnx")))
    assert found.shape == float_.shape == (3, 4, 24, 40)
    assert sqnr([found], [float_]) > 5


def test_channels_that_come_last_stay_last(tmp_path):
    """As tf2onnx writes them: the network begins behind the Transpose, the file in front of it."""
    nodes = [
        node("Transpose", "image", "first", perm=[0, 3, 1, 2]), node("Conv", "first w1", "c1", strides=[2, 2]),
        node("Relu", "c1", "r1"), node("Transpose", "r1", "scores", perm=[0, 2, 3, 1]),
    ]  # fmt: skip
    image = helper.make_tensor_value_info("image", 1, ("n", 16, 20, 3))
    scores = helper.make_tensor_value_info("scores", 1, ("n", 7, 9, 4))
    graph = helper.make_graph(nodes, "net", [image], [scores], [numpy_helper.from_array(floats(4, 3, 3, 3), "w1")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "a.onnx")
    network, example = load_model(str(tmp_path / "a.onnx"))
    assert example.shape == (1, 3, 16, 20)
    check = export_onnx(compress(network, Recipe.parse(EIGHT), example), tmp_path / "b.onnx")
    ours = onnx.load(tmp_path / "b.onnx")
    assert check.sqnr_db > check.quantization_db + 10 and ours.graph.input[0] == image
    with pytest.raises(ModelError, match=r"the input image is \(any, 3, 16, 20\); \(1, 3, 20, 16\) does not fit"):
        load_model(str(tmp_path / "a.onnx"), input_shape=(1, 3, 20, 16))


def test_a_linear_layer_on_rows_of_any_number(tmp_path):
    """Of a sequence, whose length is open as the image's width is."""
    nodes = [
        node("Conv", "image w1", "c1", strides=[4, 2]), node("Squeeze", "c1 at_2", "row"),
        node("Transpose", "row", "steps", perm=[0, 2, 1]), node("MatMul", "steps w2", "product"),
        node("Add", "product b2", "scores"),
    ]  # fmt: skip
    constants = {"w1": floats(4, 3, 4, 3), "at_2": np.array([2]), "w2": floats(4, 5), "b2": floats(5)}
    stored = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    image = helper.make_tensor_value_info("image", 1, ("n", 3, 4, "width"))
    scores = helper.make_tensor_value_info("scores", 1, ("n", "steps", 5))
    graph = helper.make_graph(nodes, "net", [image], [scores], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "a.onnx")
    export_onnx(compressed(tmp_path / "a.onnx", shape=(1, 3, 4, 9)), tmp_path / "b.onnx")
    wide = torch.randn(2, 3, 4, 41, generator=torch.Generator().manual_seed(0))
    [found], [float_] = (run_file(session(tmp_path / f"{name}.onnx"), (wide,)) for name in "ba")
    assert found.shape == float_.shape == (2, 20, 5) and sqnr([found], [float_]) > 10


def recurrent(path, batch, order):
    """A linear layer behind an LSTM; the scores' dimensions in this order, of steps, images, classes."""
    nodes = [
        node("Conv", "image w1", "c1", strides=[4, 2]), node("Squeeze", "c1 at_2", "row"),
        node("Transpose", "row", "steps", perm=[2, 0, 1]),
        helper.make_node("LSTM", ["steps", "w", "r", "b"], ["states", "last", "cells"], name="lstm", hidden_size=5),
        node("Squeeze", "states at_1", "features"), node("MatMul", "features w2", "product"),
        node("Transpose", "product", "scores", perm=order),
    ]  # fmt: skip
    constants = {"w1": floats(4, 3, 4, 3), "at_1": np.array([1]), "at_2": np.array([2]), "w2": floats(5, 6)}
    constants |= {"w": floats(1, 20, 4), "r": floats(1, 20, 5, seed=1), "b": floats(1, 40)}
    stored = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    image = helper.make_tensor_value_info("image", 1, (batch, 3, 4, "width"))
    scores = helper.make_tensor_value_info("scores", 1, [(None, batch, 6)[i] for i in order])
    graph = helper.make_graph(nodes, "net", [image], [scores], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 1, 2]], ids=["images first", "steps first"])
def test_a_layer_behind_a_recurrent_one(order, tmp_path):
    """Its input is rounded where the recurrent layer gave it, in front of the moves to ONNX's layout."""
    recurrent(tmp_path / "a.onnx", "n", order)
    check = export_onnx(compressed(tmp_path / "a.onnx", shape=(1, 3, 4, 9)), tmp_path / "b.onnx")
    assert check.sqnr_db > min(check.quantization_db + 10, 80)
    found = by_output(onnx.load(tmp_path / "b.onnx"))
    assert found["states"].op_type == "LSTM" and found["states_dequantized"].op_type == "DequantizeLinear"


def test_outputs_without_a_batch_in_front_cannot_be_compared_one_by_one(tmp_path):
    recurrent(tmp_path / "a.onnx", 1, [0, 1, 2])
    run = compressed(tmp_path / "a.onnx", shape=(1, 3, 4, 9))
    with pytest.raises(ExportError, match=r"outputs are \(\d+, 1, 6\) for \d+ images, and not one an image"):
        export_onnx(run, tmp_path / "b.onnx")


def test_a_fixed_batch_stays_fixed(written):
    _, check, _, ours = written(sides=(1, 3, 16, 16))
    assert [d.dim_value for d in ours.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 16, 16]
    assert check.sqnr_db > check.quantization_db + 10


def test_an_old_opset_is_brought_to_the_first_that_can_say_it(tmp_path):
    path = tmp_path / "theirs.onnx"
    old = [node("Conv", "image w1", "c1"), node("Clip", "c1", "scores", min=0.0, max=6.0)]
    stored = [numpy_helper.from_array(floats(4, 3, 3, 3), "w1")]
    ends = (
        helper.make_tensor_value_info(n, 1, s) for n, s in (("image", ("n", 3, 16, 16)), ("scores", ("n", 4, 14, 14)))
    )
    graph = helper.make_graph(old, "old", *([e] for e in ends), stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=4), path)
    check = export_onnx(compressed(path), tmp_path / "ours.onnx")
    ours = onnx.load(tmp_path / "ours.onnx")
    assert ours.opset_import[0].version == 13 and check.sqnr_db > check.quantization_db + 10
    assert [v.name for v in ours.graph.output] == ["scores"]


@EVERY_NET
def test_every_net_is_written_back(name, tmp_path):
    net, inputs = NETS[name]()
    graph = trace(net, inputs)
    fold_batchnorm_(graph)
    try:
        onnx.save(translate(graph, opset=21), tmp_path / "theirs.onnx")
    except ExportError:
        pytest.skip("this net cannot be written")
    run = compressed(tmp_path / "theirs.onnx", FOUR, tuple(inputs[0].shape))
    check = export_onnx(run, tmp_path / "ours.onnx", probes=inputs)
    assert check.sqnr_db > min(check.quantization_db + 10, 80)
    found = by_output(onnx.load(tmp_path / "ours.onnx"))
    assert any(n.op_type == "QuantizeLinear" for n in found.values())


def test_a_run_that_was_saved_finds_its_file(written, tmp_path):
    run, check, *_ = written()
    run.save(tmp_path / "run")
    again = export_onnx(Run.load(tmp_path / "run"), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (
        tmp_path / "ours.onnx"
    ).read_bytes() and again.bytes == check.bytes


def test_what_was_written_is_not_compressed_again(written, tmp_path):
    written()
    with pytest.raises(ModelError, match=r"is quantized already \(DequantizeLinear\); give the float network"):
        load_model(str(tmp_path / "ours.onnx"), input_shape=(1, 3, 16, 16))


@pytest.mark.parametrize("largest", [100, pytest.param(10**6, marks=pytest.mark.slow)], ids=["two files", "one file"])
def test_a_file_that_keeps_its_weights_in_another_one(largest, tmp_path):
    """What was compressed comes from the student, all else from the file of weights."""
    net, inputs = NETS["residual"]()
    whole, theirs, shape = translate(trace(net, inputs), opset=21), tmp_path / "in" / "net.onnx", tuple(inputs[0].shape)
    onnx.save(whole, tmp_path / "whole.onnx")
    wanted = export_onnx(compressed(tmp_path / "whole.onnx", shape=shape), tmp_path / "wanted.onnx", largest=largest)
    theirs.parent.mkdir()
    onnx.save(whole, theirs, location="net.weights", save_as_external_data=True, size_threshold=0)
    check = export_onnx(compressed(theirs, shape=shape), tmp_path / "ours.onnx", largest=largest)
    ours, same = (onnx.load(tmp_path / f"{name}.onnx") for name in ("ours", "wanted"))
    assert ours.graph == same.graph and check.sqnr_db == wanted.sqnr_db
    assert (tmp_path / "ours.onnx.data").exists() == (largest == 100)


def test_the_weights_of_the_file_are_never_replaced(tmp_path):
    theirs, whole = tmp_path / "theirs.onnx", onnx.load(a_file(tmp_path / "whole.onnx"))
    onnx.save(whole, theirs, save_as_external_data=True, size_threshold=0, location="ours.onnx.data")
    run = compressed(theirs)
    for name in ("ours.onnx", "ours.onnx.data"):
        with pytest.raises(ExportError, match="is the file that the network was read from; choose another name"):
            export_onnx(run, tmp_path / name, force=True, largest=100)
    load_model(str(theirs), input_shape=(1, 3, 16, 16))


def test_a_graph_of_its_own_on_request(written):
    *_, ours = written(options={"new_graph": True})
    assert ours.graph.name == "student" and ours.graph.output[0].name == "output"


def test_a_file_that_moved(written, tmp_path):
    run, *_ = written()
    (tmp_path / "theirs.onnx").rename(tmp_path / "moved.onnx")
    with pytest.raises(ExportError, match=r"there is no file .*theirs\.onnx.*put it back, or write a graph of its own"):
        export_onnx(run, tmp_path / "again.onnx")
    export_onnx(run, tmp_path / "again.onnx", into=tmp_path / "moved.onnx")


def test_a_file_that_was_changed(written, tmp_path):
    run, _, theirs, _ = written()
    theirs.graph.initializer[0].raw_data = floats(4, 3, 3, 3, seed=9).tobytes()
    onnx.save(theirs, tmp_path / "theirs.onnx")
    with pytest.raises(ExportError, match="was changed since, or is another one"):
        export_onnx(run, tmp_path / "again.onnx")


def test_the_file_itself_is_never_replaced(written, tmp_path):
    run, *_ = written()
    with pytest.raises(ExportError, match="is the file that the network was read from; choose another name"):
        export_onnx(run, tmp_path / "theirs.onnx", force=True)


def test_four_bits_need_a_newer_opset(written):
    with pytest.raises(ExportError, match="is of opset 17, which has no INT4; leave it out, or write a new graph"):
        written(FOUR, {"int4": True})


def test_a_file_that_ends_in_a_layer_whose_answer_is_rounded(tmp_path):
    """`arm` rounds what the network returns: the layer's value is no longer the output itself."""
    nodes = [
        node("Conv", "image w1", "c1"),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 w2", "scores"),
    ]
    image = helper.make_tensor_value_info("image", 1, ("batch", 3, 8, 8))
    scores = helper.make_tensor_value_info("scores", 1, ("batch", 4, 4, 4))
    stored = [numpy_helper.from_array(floats(4, n, 3, 3), name) for name, n in (("w1", 3), ("w2", 4))]
    model = helper.make_model(
        helper.make_graph(nodes, "net", [image], [scores], stored),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(model, tmp_path / "theirs.onnx")
    run = compressed(tmp_path / "theirs.onnx", EIGHT + "target: arm\n", (1, 3, 8, 8))
    check = export_onnx(run, tmp_path / "ours.onnx")
    made = by_output(onnx.load(tmp_path / "ours.onnx"))
    assert check.sqnr_db > 80
    assert (made["scores"].op_type, made["scores_float"].op_type) == ("DequantizeLinear", "Conv")
