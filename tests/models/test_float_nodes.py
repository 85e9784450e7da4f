"""Nodes that are not read, in front of layers: the file's function stays, layers on both sides are quantized, and the
node itself runs as it is, also in a run that was saved."""

import base64
import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from datafree import Recipe, Run, compress, export_onnx, load_model
from datafree.graph import trace
from datafree.models import ModelError
from datafree.models.onnx_file.float_nodes import RUNNERS, check_node, encoded, runner
from datafree.models.onnx_file.graph import read_graph
from datafree.run.record import RunError

CHEAP = Recipe.parse(
    "signal: {kind: propagated, images: 4}\nsolve: {method: nearest, clip: false}\nequalize: off\n"
    "weights: {bits: 8}\nactivations: {bits: 8}\n"
)


def floats(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def node(operator, inputs, outputs, **attributes):
    name = f"/net/{outputs}/{operator}"
    return helper.make_node(operator, inputs.split(" "), outputs.split(" "), name=name, **attributes)


def file(tmp_path, *between, opset=17, **constants):
    """Between a convolution with BatchNorm that gives r (N, 4, 7, 7), and one that reads d."""
    norm = {"gamma": 1 + 0.1 * floats(4), "beta": floats(4), "mean": floats(4), "var": floats(4) ** 2 + 0.1}
    constants |= {"w": floats(4, 3, 3, 3), "b": floats(4), "v": floats(5, 4, 3, 3, seed=1), **norm}
    nodes = [
        node("Conv", "x w b", "c"), node("BatchNormalization", f"c {' '.join(norm)}", "n"), node("Relu", "n", "r"),
        *between, node("Conv", "d v", "y"),
    ]  # fmt: skip
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    ends = helper.make_tensor_value_info("x", 1, ("n", 3, 9, 9)), helper.make_tensor_value_info("y", 1, None)
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], stored)
    path = tmp_path / "theirs.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


GRID = {"grid": np.linspace(-1, 1, 72, dtype=np.float32).reshape(1, 6, 6, 2), "at_0": np.array([0])}
CASES = {
    "CumSum": ([node("CumSum", "r axis", "d")], {"axis": np.int64(2)}),
    "ThresholdedRelu": ([node("ThresholdedRelu", "r", "d", alpha=0.3)], {}),
    "LpNormalization": ([node("LpNormalization", "r", "d", axis=1)], {}),
    "TopK and ScatterElements": (
        [node("TopK", "r k", "t i", axis=2), node("ScatterElements", "r i t", "d", axis=2)], {"k": np.array([5])},
    ),
    "ArgMax": (
        [node("ArgMax", "r", "a", axis=1), node("Cast", "a", "f", to=1), node("Mul", "r f", "d")], {},
    ),
    "GridSample of a grid an image": (
        [
            node("Shape", "r", "s"), node("Slice", "s at_0 at_1", "n_"), node("Concat", "n_ rest", "size", axis=0),
            node("Expand", "grid size", "grids"), node("GridSample", "r grids", "d", padding_mode="border"),
        ],
        {**GRID, "at_1": np.array([1]), "rest": np.array([6, 6, 2])},
    ),
    "DeformConv": (
        [node("Conv", "r wo", "o", pads=[1] * 4), node("DeformConv", "r wd o", "d", pads=[1] * 4)],
        {"wo": 0.01 * floats(18, 4, 3, 3), "wd": floats(4, 4, 3, 3)},
    ),
}  # fmt: skip
EVERY = pytest.mark.parametrize("name", CASES)


def a_case(name, tmp_path):
    nodes, constants = CASES[name]
    return file(tmp_path, *nodes, opset=19 if name == "DeformConv" else 17, **constants)


def expected(path, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


@EVERY
def test_the_function_stays(name, tmp_path):
    """Of any batch, captured too."""
    path = a_case(name, tmp_path)
    network, example = load_model(str(path))
    x = torch.randn(5, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    wanted = expected(path, x)
    torch.testing.assert_close(network(x), wanted, rtol=1e-4, atol=1e-4)
    captured = trace(network, example)
    torch.testing.assert_close(captured(x), wanted, rtol=1e-4, atol=1e-4)
    assert any("onnx_node" in str(n.target) for n in captured.graph.nodes)


@EVERY
def test_layers_on_both_sides_are_quantized_and_the_node_stays(name, tmp_path):
    path = a_case(name, tmp_path)
    network, example = load_model(str(path))
    run = compress(network, CHEAP, example)
    check = export_onnx(run, tmp_path / "ours.onnx")
    assert check.sqnr_db > min(check.quantization_db + 10, 80)
    theirs, ours = (onnx.load(tmp_path / f"{name}.onnx") for name in ("theirs", "ours"))
    made = {output: n for n in ours.graph.node for output in n.output}
    layers = [n for n in made.values() if n.op_type == "Conv"]
    assert len(layers) == len(run.layers) >= 2
    assert all(made[layer.input[0]].op_type == "DequantizeLinear" for layer in layers)
    assert sum(t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4 for t in ours.graph.initializer) == len(layers)
    told = {item.name for item in run.summary.skipped if "runs as it is, in float" in item.reason}
    for was in (n for n in theirs.graph.node if f"{n.op_type} ({n.name})" in told):
        assert made[was.output[0]].op_type == was.op_type and made[was.output[0]].name == was.name
        assert made[was.output[0]].attribute == was.attribute
    assert told and all(item in {f"{n.op_type} ({n.name})" for n in theirs.graph.node} for item in told)


@pytest.mark.parametrize("name", ["CumSum", "TopK and ScatterElements"])
def test_a_saved_run_has_the_node(name, tmp_path):
    network, example = load_model(str(a_case(name, tmp_path)))
    run = compress(network, CHEAP, example)
    run.save(tmp_path / "run")
    x = torch.randn(3, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    again = Run.load(tmp_path / "run")
    torch.testing.assert_close(again.student(x), run.student(x), rtol=0, atol=0)


def test_a_graph_of_its_own_has_the_node(tmp_path):
    network, example = load_model(str(a_case("CumSum", tmp_path)))
    run = compress(network, CHEAP, example)
    check = export_onnx(run, tmp_path / "ours.onnx", new_graph=True)
    assert check.sqnr_db > min(check.quantization_db + 10, 80)
    assert [n.op_type for n in onnx.load(tmp_path / "ours.onnx").graph.node].count("CumSum") == 1


def test_an_operator_that_means_something_else_in_the_opset_that_is_written(tmp_path):
    network, example = load_model(str(a_case("TopK and ScatterElements", tmp_path)))
    run = compress(network, CHEAP, example)
    with pytest.raises(ValueError, match=r"ScatterElements .* is of opset 17, which has another ScatterElements"):
        export_onnx(run, tmp_path / "ours.onnx", new_graph=True)


@pytest.mark.parametrize("settings", ["signal.kind=inverted", "signal.kind=adversarial"])
def test_images_are_moved_by_what_is_in_front_of_the_node(settings, tmp_path):
    network, example = load_model(str(a_case("CumSum", tmp_path)))
    recipe = Recipe.preset("w8a8").updated([settings, "signal.steps=2", "signal.images=4"])
    assert len(compress(network, recipe, example).layers) == 2


def test_both_that_run_nodes_give_the_same(tmp_path):
    path = a_case("CumSum", tmp_path)
    found = next(n for n in read_graph(path).nodes if n.operator == "CumSum")
    given = [floats(2, 4, 7, 7), np.array(2)]
    one, other = (runner(place, encoded(found), 17, ("float32", "int64"))(given)[0] for place in RUNNERS)
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


REFUSED = {
    "neither runs it": (
        [node("Slice", "r at_0 at_5 at_2", "t"), node("Det", "t", "e"), node("Unsqueeze", "e axes", "d")],
        {"at_0": np.array([0]), "at_5": np.array([5]), "at_2": np.array([2]), "axes": np.array([2, 3])},
        r"Det \(/net/e/Det\) is not read, and neither ONNX Runtime nor onnx.reference runs it: .*; export the network",
    ),
    "a size of values": (
        [node("NonZero", "r", "z"), node("Cast", "z", "f", to=1), node("ReduceMean", "f", "m", axes=[1]),
         node("Unsqueeze", "m axes", "k"), node("Mul", "r k", "d")],
        {"axes": np.array([0, 3])},
        r"NonZero \(/net/z/NonZero\) is not read, and the size of what it gives does not follow the batch: \(4, \d+\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name, tmp_path):
    nodes, constants, message = REFUSED[name]
    with pytest.raises(ModelError, match=message):
        load_model(str(file(tmp_path, *nodes, **constants)))


def test_what_reads_the_size_of_the_batch_is_refused(tmp_path):
    nodes = (
        node("Shape", "r", "s"), node("Gather", "s at_0", "count"), node("CumSum", "r axis", "t"),
        node("Add", "count four", "more"), node("Unsqueeze", "more axes", "k"), node("TopK", "t k", "d i", axis=2),
    )  # fmt: skip
    path = file(tmp_path, *nodes, at_0=np.int64(0), four=np.int64(4), axis=np.int64(2), axes=np.array([0]))
    with pytest.raises(
        ModelError, match=r"TopK .* is not read, and it reads the size of the batch; export the network"
    ):
        load_model(str(path))


def empty():
    return helper.make_graph([], "g", [], [])


def text(proto):
    return base64.b64encode(proto.SerializeToString()).decode()


def outside():
    tensor = numpy_helper.from_array(np.zeros(1, np.float32))
    onnx.external_data_helper.set_external_data(tensor, "/etc/hostname")
    return tensor


TAMPERED = {
    "no base64": ("not base64", "a node is damaged"),
    "domain": (text(helper.make_node("Relu", ["x0"], ["y0"], domain="com.example")), "is no operator that is run"),
    "control flow": (text(helper.make_node("Loop", ["x0"], ["y0"], body=empty())), "Loop is no operator that is run"),
    "a network": (text(helper.make_node("Relu", ["x0"], ["y0"], body=empty())), "Relu holds GRAPH; numbers, text"),
    "a file": (text(helper.make_node("EyeLike", ["x0"], ["y0"], value=outside())), "keeps a tensor in another file"),
    "no operator": (text(helper.make_node("Shell", ["x0"], ["y0"])), "Shell is no operator of ONNX's opset 17"),
    "decodes": (text(helper.make_node("ImageDecoder", ["x0"], ["y0"])), "is no operator that is run as it is"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run directory of a network with such a node."""
    place = tmp_path_factory.mktemp("saved")
    network, example = load_model(str(a_case("CumSum", place)))
    compress(network, CHEAP, example).save(place / "run")
    return place / "run"


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_run_is_refused_when_it_is_read(name, saved, tmp_path):
    changed, message = TAMPERED[name]
    with pytest.raises(ModelError, match=message):
        check_node(changed, 17)
    shutil.copytree(saved, tmp_path / "run")
    file = tmp_path / "run" / "student.json"
    content = json.loads(file.read_text())
    call = next(n for n in content["nodes"] if n["target"] == "datafree.onnx_node.default")
    call["args"][2] = changed
    file.write_text(json.dumps(content))
    with pytest.raises(RunError, match="is damaged"):
        Run.load(tmp_path / "run")
