"""ONNX files are read as the networks they are: against ONNX Runtime, alone and after capture, and refused by name."""

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from datafree import Recipe, compress, export_onnx, load_model
from datafree import graph as g
from datafree.export.onnx.translate import translate
from datafree.graph.capture import trace
from datafree.models import provenance
from datafree.models.onnx_file import OnnxNetwork, files_of, load_onnx
from datafree.models.onnx_file.graph import read_graph
from datafree.models.onnx_file.tail import without_tail
from datafree.models.state_dict import ModelError
from datafree.teacher.batchnorm import fold_batchnorm_
from nets import NETS

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
helper, numpy_helper = onnx.helper, onnx.numpy_helper

RNG = np.random.default_rng(0)
IMAGE = ("n", 3, 9, 9)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def node(operator, inputs, output, **attributes):
    return helper.make_node(operator, inputs.split(" "), [output], name=f"/net/{output}/{operator}", **attributes)


def model(*nodes, opset=17, shape=IMAGE, constants=None, outputs=("y",), as_inputs=False):
    """A file's content: constants are initializers, and inputs of the graph too with `as_inputs`, as old files have."""
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
    inputs = [helper.make_tensor_value_info("x", 1, shape)]
    if as_inputs:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
    found = [helper.make_tensor_value_info(name, 1, None) for name in outputs]
    graph = helper.make_graph(list(nodes), "net", inputs, found, initializer=tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def written(tmp_path, proto):
    path = tmp_path / "net.onnx"
    onnx.save(proto, path)
    return path


def expected(path, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(y) for y in session.run(None, {session.get_inputs()[0].name: x.numpy()})]


def same(path, shape=(1, 3, 9, 9), *, captured=True):
    """The network read, as the file is run; and captured for any batch."""
    network = OnnxNetwork(read_graph(path)).eval()
    x = example = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    wanted = expected(path, x)
    with torch.no_grad():
        for found, one in zip(tree_leaves(network(x)), wanted, strict=True):
            torch.testing.assert_close(found, one, rtol=1e-4, atol=1e-5)
        graph = trace(network, example) if captured else None
        for found, one in zip(tree_leaves(graph(torch.cat([x, x]))) if graph else [], wanted, strict=bool(graph)):
            torch.testing.assert_close(found[: len(one)], one, rtol=1e-4, atol=1e-5)
    return graph


CONV = {"w": floats(4, 3, 3, 3), "b": floats(4)}
POOL = {"kernel_shape": [3, 3], "strides": [2, 2]}
CASES = {
    "pads that differ": ([node("Conv", "x w b", "y", pads=[0, 1, 1, 0])], CONV),
    "SAME_UPPER": ([node("Conv", "x w b", "y", auto_pad="SAME_UPPER", strides=[2, 2])], CONV),
    "SAME_LOWER": ([node("Conv", "x w", "y", auto_pad="SAME_LOWER", strides=[2, 2])], {"w": CONV["w"]}),
    "VALID": ([node("Conv", "x w b", "y", auto_pad="VALID")], CONV),
    "transposed": (
        [node("ConvTranspose", "x w b", "y", strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])],
        {"w": floats(3, 4, 3, 3), "b": floats(4)},
    ),
    "transposed, pads that differ": (
        [node("ConvTranspose", "x w b", "y", strides=[2, 2], pads=[0, 0, 1, 1])],
        {"w": floats(3, 4, 3, 3), "b": floats(4)},
    ),
    "max pool": ([node("MaxPool", "x", "y", pads=[0, 0, 1, 1], **POOL)], {}),
    "max pool, SAME_LOWER": (
        [node("MaxPool", "x", "y", auto_pad="SAME_LOWER", kernel_shape=[4, 4], strides=[2, 2])], {},
    ),
    "max pool, ceil": ([node("MaxPool", "x", "y", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)], {}),
    "average pool": ([node("AveragePool", "x", "y", pads=[1, 1, 1, 1], **POOL)], {}),
    "average pool, padding counts": ([node("AveragePool", "x", "y", pads=[1] * 4, count_include_pad=1, **POOL)], {}),
    "average pool, pads that differ": ([node("AveragePool", "x", "y", pads=[0, 0, 1, 1], **POOL)], {}),
    "clip of constants": ([node("Clip", "x low high", "y")], {"low": np.float32(-0.5), "high": np.float32(0.5)}),
    "prelu": ([node("PRelu", "x slope", "y")], {"slope": floats(3, 1, 1)}),
    "hard sigmoid": ([node("HardSigmoid", "x", "y", alpha=0.3)], {}),
    "pad, reflected": (
        [node("Pad", "x pads", "y", mode="reflect")], {"pads": np.array([0, 0, 1, 2, 0, 0, 2, 1], np.int64)},
    ),
    "resize, linear": (
        [node("Resize", "x  scales", "y", mode="linear")], {"scales": np.array([1, 1, 2, 2], np.float32)},
    ),
    "resize, nearest": (
        [node("Resize", "x  scales", "y", mode="nearest", coordinate_transformation_mode="asymmetric",
              nearest_mode="floor")],
        {"scales": np.array([1, 1, 2, 2], np.float32)},
    ),
    "depth to space": ([node("DepthToSpace", "c", "y", blocksize=2)], CONV),
    "depth to space, CRD": ([node("DepthToSpace", "c", "y", blocksize=2, mode="CRD")], CONV),
    "split": (
        [helper.make_node("Split", ["x", "sizes"], ["a", "b"], axis=1), node("Concat", "b a", "y", axis=1)],
        {"sizes": np.array([1, 2], np.int64)},
    ),
    "slice with steps": (
        [node("Slice", "x starts ends axes steps", "y")],
        {"starts": np.array([1, 0]), "ends": np.array([9, 2**62]), "axes": np.array([2, 3]), "steps": np.array([2, 1])},
    ),
    "slice backwards": (
        [node("Slice", "x starts ends axes steps", "y")],
        {"starts": np.array([-1, 7]), "ends": np.array([-(2**63), -8]), "axes": np.array([1, -1]),
         "steps": np.array([-1, -2])},
    ),
    "gather of one channel": ([node("Gather", "x i", "y", axis=1)], {"i": np.int64(1)}),
    "reduced": ([node("ReduceMean", "x", "y", axes=[2, 3], keepdims=0)], {}),
    "layer norm": (
        [node("Transpose", "x", "t", perm=[0, 2, 3, 1]), node("LayerNormalization", "t s", "y")], {"s": floats(3)},
    ),
    "many operands": (
        [node("Mul", "x half", "a"), node("Min", "x a", "m"), node("Sum", "m a x", "y")], {"half": np.float32(0.5)},
    ),
    "shape arithmetic": (
        [
            node("Shape", "x", "s"), node("Gather", "s zero", "n", axis=0), node("Unsqueeze", "n axis", "u"),
            node("Concat", "u rest", "to", axis=0), node("Reshape", "x to", "y"),
        ],
        {"zero": np.int64(0), "axis": np.array([0], np.int64), "rest": np.array([-1], np.int64)},
    ),
    "transposed, as large as its output shape": (
        [node("ConvTranspose", "x w b", "y", strides=[2, 2], output_shape=[17, 18])],
        {"w": floats(3, 4, 3, 3), "b": floats(4)},
    ),
    "transposed, SAME_UPPER": (
        [node("ConvTranspose", "x w", "y", strides=[2, 2], auto_pad="SAME_UPPER")], {"w": floats(3, 4, 3, 3)},
    ),
    "choice": (
        [node("Greater", "x half", "g"), node("Not", "g", "n"), node("Where", "n x half", "y")],
        {"half": np.float32(0.5)},
    ),
    "remainders": ([node("Mod", "x three", "y", fmod=1)], {"three": np.float32(3)}),
    "signs and waves": (
        [node("Sin", "x", "s"), node("Cos", "x", "k"), node("Concat", "s k", "j", axis=1), node("Sign", "j", "y")], {},
    ),
    "sums of squares": (
        [node("ReduceSumSquare", "x", "s", axes=[1]), node("ReduceL1", "x", "l", axes=[1]), node("Div", "s l", "y")],
        {},
    ),
    "logarithm of a sum": ([node("ReduceLogSumExp", "x", "y", axes=[1])], {}),
    "log softmax": ([node("LogSoftmax", "x", "y", axis=1)], {}),
    "response normalisation": ([node("LRN", "x", "y", size=3, alpha=0.1)], {}),
    "product of everything": ([node("Einsum", "x x", "y", equation="nchw,nkhw->nck")], {}),
    "repeated": ([node("Tile", "x times", "y")], {"times": np.array([1, 2, 1, 3], np.int64)}),
    "grid of places": (
        [
            node("Shape", "x", "s"), node("Gather", "s three", "w", axis=0), node("Range", "zero w one", "r"),
            helper.make_node("Cast", ["r"], ["f"], to=1), node("Add", "f half", "p"), node("Shape", "x", "t"),
            node("Expand", "p t", "e"), node("Mul", "x e", "y"),
        ],
        {"three": np.int64(3), "zero": np.int64(0), "one": np.int64(1), "half": np.float32(0.5)},
    ),
    "a third of one side": (
        [
            node("Shape", "x", "s"), node("Gather", "s three", "w", axis=0), node("Div", "w three", "d"),
            node("Range", "zero d one", "r"), helper.make_node("Cast", ["r"], ["f"], to=1),
            node("Reshape", "f sides", "e"), node("Mul", "x e", "y"),
        ],
        {"three": np.int64(3), "zero": np.int64(0), "one": np.int64(1), "sides": np.array([1, 3, 1, 1], np.int64)},
    ),
    "expanded as PyTorch writes it": (
        [
            node("Shape", "x", "s"), node("Shape", "s", "k"), node("ConstantOfShape", "k", "ones",
            value=helper.make_tensor("value", 7, [1], [1])), node("Mul", "ones minus", "m"), node("Equal", "to m", "q"),
            node("Where", "q ones to", "sizes"), node("Expand", "x sizes", "y"),
        ],
        {"minus": np.int64(-1), "to": np.array([-1, 3, 9, -1], np.int64)},
    ),
    "batchnorm of a row": (
        [
            node("GlobalAveragePool", "x", "p"), node("Flatten", "p", "f"), node("MatMul", "f m", "l"),
            node("BatchNormalization", "l s o mean var", "y"),
        ],
        {"m": floats(3, 4), "s": floats(4), "o": floats(4), "mean": floats(4), "var": floats(4) ** 2},
    ),
    "half of the sides": (
        [
            node("Shape", "x", "s"), node("Slice", "s two four", "hw"), node("Div", "hw halves", "d"),
            node("Concat", "front d", "sizes", axis=0), node("Resize", "x   sizes", "y", mode="linear"),
        ],
        {"two": np.array([2], np.int64), "four": np.array([4], np.int64), "halves": np.array([3], np.int64),
         "front": np.array([1, 3], np.int64)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operator_means_what_it_means_there(name, tmp_path):
    nodes, constants = CASES[name]
    if any("c" in n.input for n in nodes):  # these read the output of a convolution
        nodes = [node("Conv", "x w b", "c"), *nodes]
    proto = model(*nodes, constants=constants, shape=(1, 3, 9, 9) if name == "half of the sides" else IMAGE)
    same(written(tmp_path, proto), captured=name != "half of the sides")


@pytest.mark.parametrize("as_inputs", [False, True])
def test_layers_have_the_names_of_their_weights(as_inputs, tmp_path):
    constants = {"stem.weight": CONV["w"], "fc.kernel": floats(4 * 7 * 7, 5), "fc.bias": floats(5)}
    nodes = (
        node("Conv", "x stem.weight", "c"), node("Relu", "c", "r"), node("Flatten", "r", "f"),
        node("MatMul", "f fc.kernel", "m"), node("Add", "m fc.bias", "y"),
    )  # fmt: skip
    graph = same(written(tmp_path, model(*nodes, constants=constants, as_inputs=as_inputs)))
    assert list(g.layers(graph)) == ["stem", "fc"]
    torch.testing.assert_close(g.get_tensor(graph, "fc.bias"), torch.from_numpy(constants["fc.bias"]))


def test_layers_without_named_weights_have_the_name_of_their_module(tmp_path):
    conv = helper.make_node("Conv", ["x", "onnx::Conv_12"], ["y"], name="/layer1/layer1.0/conv1/Conv")
    graph = same(written(tmp_path, model(conv, constants={"onnx::Conv_12": CONV["w"]})))
    assert list(g.layers(graph)) == ["layer1.0.conv1"]


def test_products_of_one_module_keep_weights_of_their_own(tmp_path):
    """As positions of an attention block: neither matrix has a name of its own, nor has one of the sums."""
    nodes = (
        helper.make_node("MatMul", ["x", "onnx::MatMul_1"], ["m"], name="/block/pos/MatMul"),
        node("Mul", "m gate.a", "p"), node("Mul", "p gate_a", "q"),
        helper.make_node("MatMul", ["q", "onnx::MatMul_2"], ["y"], name="/block/pos/MatMul_1"),
    )  # fmt: skip
    names = ("onnx::MatMul_1", "onnx::MatMul_2", "gate.a", "gate_a")
    constants = {name: floats(9, 9) if "::" in name else floats(1, 3, 1, 1) for name in names}
    assert len({value.tobytes() for value in constants.values()}) == 4
    graph = same(written(tmp_path, model(*nodes, constants=constants)))
    assert list(g.layers(graph)) == ["block.pos", "block.pos_1"]


def test_constants_may_be_nodes_and_computed(tmp_path):
    """As Paddle and tf2onnx write them: weights as nodes, transposed."""
    weight = numpy_helper.from_array(CONV["w"].transpose(2, 3, 1, 0).copy(), "v")
    nodes = (
        helper.make_node("Constant", [], ["k"], value=weight), node("Transpose", "k", "w", perm=[3, 2, 0, 1]),
        node("Conv", "x w", "y"),
    )  # fmt: skip
    graph = same(written(tmp_path, model(*nodes)))
    assert len(g.layers(graph)) == 1


def test_channels_last_with_transposes(tmp_path):
    nodes = (
        node("Transpose", "x", "first", perm=[0, 3, 1, 2]), node("Conv", "first w b", "c"),
        node("Transpose", "c", "last", perm=[0, 2, 3, 1]), node("Relu", "last", "y"),
    )  # fmt: skip
    proto = model(*nodes, constants=CONV, shape=("n", 9, 9, 3))
    assert len(g.layers(same(written(tmp_path, proto), (1, 9, 9, 3)))) == 1


def test_batchnorm_is_remembered(tmp_path):
    stats = {
        "bn.weight": floats(4),
        "bn.bias": floats(4),
        "bn.running_mean": floats(4),
        "bn.running_var": floats(4) ** 2,
    }
    nodes = (node("Conv", "x w b", "c"), node("BatchNormalization", f"c {' '.join(stats)}", "y"))
    graph = same(written(tmp_path, model(*nodes, constants={**CONV, **stats})))
    [[found]] = [list(fold_batchnorm_(graph)[0].values())]
    torch.testing.assert_close(found.mean, torch.from_numpy(stats["bn.bias"]))


def test_pads_that_are_computed(tmp_path):
    """As PyTorch writes TensorFlow's "same" padding: the rest of a side, cut off at 0."""
    constants = {
        **CONV,
        "two": np.int64(2),
        "none_below": np.int64(0),
        "at": np.int64(2),
        "none": np.zeros(3, np.int64),
        "rest": np.zeros(4, np.int64),
    }
    nodes = (
        node("Shape", "x", "s"), node("Gather", "s at", "side", axis=0), node("Mod", "side two", "m"),
        node("Clip", "m none_below", "more"), helper.make_node("Constant", [], ["first"], value_ints=[0]),
        node("Unsqueeze", "more first", "last"), node("Concat", "none last rest", "pads", axis=0),
        node("Pad", "x pads", "p"), node("Conv", "p w b", "y"),
    )  # fmt: skip
    assert len(g.layers(same(written(tmp_path, model(*nodes, constants=constants))))) == 1


def test_attributes_are_the_numbers_that_were_meant(tmp_path):
    """Stored as float32: an epsilon of 0.001 gives the bits that it gives in PyTorch."""
    graph = read_graph(written(tmp_path, model(node("LeakyRelu", "x", "y", alpha=0.001))))
    assert graph.nodes[0].attributes == {"alpha": 0.001}


@pytest.mark.parametrize("opset", [7, 9, 10, 13, 22])
def test_old_and_new_forms(opset, tmp_path):
    """Attributes that became inputs."""
    constants = {**CONV, "axes": np.array([2, 3], np.int64)}
    clip = node("Clip", "c low high", "k") if opset >= 11 else node("Clip", "c", "k", min=0.0, max=6.0)
    if opset >= 11:
        constants |= {"low": np.float32(0), "high": np.float32(6)}
    squeezed = node("Squeeze", "p axes", "y") if opset >= 13 else node("Squeeze", "p", "y", axes=[2, 3])
    nodes = (node("Conv", "x w b", "c"), clip, node("GlobalAveragePool", "k", "p"), squeezed)
    same(written(tmp_path, model(*nodes, constants=constants, opset=opset)))


def test_reshape_written_for_one_image(tmp_path):
    nodes = (node("Conv", "x w b", "c"), node("Reshape", "c to", "y"))
    graph = same(
        written(tmp_path, model(*nodes, constants={**CONV, "to": np.array([1, -1], np.int64)}, shape=(1, 3, 9, 9)))
    )
    assert g.shape(g.outputs(graph)[0]) == (2, 4 * 49)


@pytest.mark.parametrize("operator", ["LSTM", "GRU"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_recurrent_layers(operator, direction, tmp_path):
    gates, both = {"LSTM": 4, "GRU": 3}[operator], 1 + (direction == "bidirectional")
    constants = {"w": floats(both, gates * 5, 27), "r": floats(both, gates * 5, 5), "b": floats(both, gates * 10),
                 "to": np.array([0, 9, 27], np.int64)}  # fmt: skip
    more = {"linear_before_reset": 1} if operator == "GRU" else {}
    nodes = (
        node("Transpose", "x", "t", perm=[0, 2, 1, 3]), node("Reshape", "t to", "s"),
        node("Transpose", "s", "f", perm=[1, 0, 2]),
        node(operator, "f w r b", "o", direction=direction, hidden_size=5, **more),
        node("Transpose", "o", "y", perm=[2, 0, 1, 3]),
    )  # fmt: skip
    same(written(tmp_path, model(*nodes, constants=constants)))


def test_layers_behind_a_recurrent_one_are_compressed(tmp_path):
    """Which stays as it is, and is listed; its first result is quantized, not all of them."""
    constants = {**CONV, "k": floats(1, 20, 49), "r": floats(1, 20, 5), "m": floats(5, 4), "to": np.array([0, 4, 49])}
    nodes = (
        node("Conv", "x w b", "c"), node("Reshape", "c to", "s"), node("Transpose", "s", "t", perm=[1, 0, 2]),
        node("LSTM", "t k r", "o", hidden_size=5), node("Squeeze", "o one", "q"),
        node("Transpose", "q", "u", perm=[1, 0, 2]), node("MatMul", "u m", "y"),
    )  # fmt: skip
    proto = model(*nodes, constants={**constants, "one": np.array([1])})
    network, example = load_onnx(written(tmp_path, proto))
    run = compress(network, Recipe.preset("w8a8").updated(["signal.images=8"]), example)
    assert (len(run.layers), [item.name for item in run.summary.skipped]) == (2, ["lstm"])
    x = torch.from_numpy(floats(2, 3, 9, 9))
    assert float((run.student(x) - network(x)).square().mean()) < 0.05 * float(network(x).var())


def test_pads_behind_a_pool_are_no_infinity(tmp_path):
    """An infinity would be in the range of a tensor that is quantized."""
    nodes = (
        node("Conv", "x w b", "c"),
        node("MaxPool", "c", "p", pads=[0, 1, 1, 0], **POOL),
        node("Conv", "p w2", "y"),
    )
    network, example = load_onnx(written(tmp_path, model(*nodes, constants={**CONV, "w2": floats(2, 4, 1, 1)})))
    assert compress(network, Recipe.preset("w8a8").updated(["signal.images=8"]), example).layers[1].error_db > 20


def test_parts_that_hold_nothing_are_left_out(tmp_path):
    constants = {**CONV, "zero": np.array([0]), "two": np.array([2])}
    nodes = (
        node("Conv", "x w b", "c"), node("Slice", "c zero zero two", "e"), node("Concat", "e c", "j", axis=2),
        node("Conv", "j w2", "y"),
    )  # fmt: skip
    path = written(tmp_path, model(*nodes, constants={**constants, "w2": floats(2, 4, 1, 1)}))
    called = [n.target for n in same(path).graph.nodes]
    assert torch.ops.aten.cat.default not in called


@pytest.mark.parametrize("scale", [2.0, 1.5, 0.5])
@pytest.mark.parametrize(
    ("mode", "how", "rounding"),
    [
        ("nearest", "asymmetric", "floor"),
        ("nearest", "asymmetric", "ceil"),
        ("nearest", "half_pixel", "round_prefer_floor"),
        ("nearest", "half_pixel", "round_prefer_ceil"),
        ("nearest", "align_corners", "round_prefer_floor"),
        ("nearest", "tf_half_pixel_for_nn", "floor"),
        ("linear", "asymmetric", "floor"),
        ("linear", "half_pixel", "floor"),
        ("linear", "pytorch_half_pixel", "floor"),
        ("linear", "align_corners", "floor"),
    ],
)
def test_every_way_to_resize(mode, how, rounding, scale, tmp_path):
    resize = node("Resize", "x  scales", "y", mode=mode, coordinate_transformation_mode=how, nearest_mode=rounding)
    scales = np.array([1, 1, scale, 2], np.float32)
    same(written(tmp_path, model(resize, constants={"scales": scales}, opset=13)), captured=scale == 1.5)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsampling_of_old_files(mode, tmp_path):
    upsample = node("Upsample", "x scales", "y", mode=mode)
    same(written(tmp_path, model(upsample, constants={"scales": np.array([1, 1, 2, 3], np.float32)}, opset=9)))


@pytest.mark.parametrize("axis", [1, 2])
def test_softmax_of_old_files_goes_over_all_that_follows(axis, tmp_path):
    same(written(tmp_path, model(node("Softmax", "x", "y", axis=axis), opset=11)))


JOINS = {
    "conv": ("Conv", floats(4, 3, 3, 3), (4, 1, 1)),
    "transposed conv": ("ConvTranspose", floats(3, 4, 3, 3), (1, 4, 1, 1)),
    "matrix": ("MatMul", floats(9, 4), (4,)),
}


@pytest.mark.parametrize("layer", JOINS)
def test_what_is_done_per_channel_behind_a_layer_goes_into_it(layer, tmp_path):
    """BatchNorm in disguise, and whatever else multiplies and adds constants."""
    operator, weight, sides = JOINS[layer]
    constants = {"w": weight, "a": floats(*sides), "b": floats(*sides), "two": np.float32(2), "d": floats(*sides)}
    nodes = (
        node(operator, "x w", "c"), node("Mul", "c a", "m"), node("Add", "b m", "s"), node("Div", "s d", "v"),
        node("Sub", "two v", "t"), node("Relu", "t", "y"),
    )  # fmt: skip
    path = written(tmp_path, model(*nodes, constants=constants))
    graph = same(path)
    called = [n.target for n in graph.graph.nodes if n.op == "call_function"]
    assert not [target for target in called if "mul" in str(target) or "sub" in str(target) or "add" in str(target)]
    joined, relu = read_graph(path).nodes
    assert (joined.covers, joined.outputs, relu.covers) == (("c", "m", "s", "v"), ("t",), ())


@pytest.mark.parametrize("name", ["read twice", "an output", "along the width", "shared weights"])
def test_what_is_not_per_channel_or_read_elsewhere_stays(name, tmp_path):
    constants = {"w": floats(4, 3, 3, 3), "a": floats(*((7,) if name == "along the width" else (4, 1, 1)))}
    nodes = [node("Conv", "x w", "c"), node("Mul", "c a", "m"), node("Relu", "m", "y")]
    outputs = ("y",)
    if name == "read twice":
        nodes[2] = node("Add", "m c", "y")
    if name == "an output":
        outputs = ("y", "c")
    if name == "shared weights":
        nodes = [*nodes[:2], node("Conv", "x w", "k"), node("Add", "m k", "y")]
    path = written(tmp_path, model(*nodes, constants=constants, outputs=outputs))
    same(path)
    assert not any(n.covers for n in read_graph(path).nodes)


NMS = node("NonMaxSuppression", "boxes scores most", "y")


def detector(*tail, **options):
    """A convolution, boxes and scores of it, and what is done with them."""
    nodes = (
        node("Conv", "x w b", "c"), node("Relu", "c", "r"), node("Shape", "r", "s"), node("Reshape", "r many", "k"),
        node("Transpose", "k", "boxes", perm=[0, 2, 1]), node("Slice", "k zero one one", "scores"),
    )  # fmt: skip
    constants = {**CONV, "many": np.array([0, 4, -1], np.int64), "zero": np.array([0], np.int64),
                 "one": np.array([1], np.int64), "most": np.int64(3)}  # fmt: skip
    return model(*nodes, *tail, constants=constants, **options)


def test_the_network_ends_in_front_of_what_is_not_read(tmp_path):
    path = written(tmp_path, detector(NMS, outputs=("r", "y")))
    network, example = load_onnx(path)
    assert network._graph.outputs == ("r", "boxes", "scores")
    assert [n.operator for n in network._graph.tail] == ["NonMaxSuppression"]
    session_outputs = detector(outputs=("r", "boxes", "scores"))
    wanted = expected(written(tmp_path, session_outputs), example + 1)
    for found, one in zip(network(example + 1), wanted, strict=True):
        torch.testing.assert_close(found, one, rtol=1e-4, atol=1e-5)
    assert g.layers(trace(network, example))


def test_the_tail_takes_comparisons_and_shapes_along(tmp_path):
    """No output of a network is what yields no floats, nor what hangs on no layer, such as shapes."""
    tail = (
        node("Greater", "scores level", "o"), node("NonZero", "o", "z"), node("Gather", "s zero", "n", axis=0),
        node("Mul", "least n", "l"), node("Add", "z l", "y"),
    )  # fmt: skip
    proto = detector(*tail)
    proto.graph.input.append(helper.make_tensor_value_info("least", 7, []))
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "level"))
    graph = without_tail(read_graph(written(tmp_path, proto)), "net.onnx")
    assert graph.outputs == ("scores",)
    assert [n.operator for n in graph.tail] == ["Greater", "NonZero", "Add"]
    assert [given.name for given in graph.inputs] == ["x"]


def branches(name, *nodes, constants=()):
    return helper.make_graph(list(nodes), name, [], [helper.make_tensor_value_info("o", 1, None)], list(constants))


def test_control_flow_behind_the_network_stays(tmp_path):
    """What its branches read of the network is an output."""
    choice = helper.make_node(
        "If", ["flag"], ["y"], then_branch=branches("a", node("Relu", "boxes", "o")),
        else_branch=branches("b", node("Neg", "scores", "o")),
    )  # fmt: skip
    proto = detector(choice)
    proto.graph.input.append(helper.make_tensor_value_info("flag", 9, []))
    graph = without_tail(read_graph(written(tmp_path, proto)), "net.onnx")
    assert {*graph.outputs} == {"boxes", "scores"}
    assert [given.name for given in graph.inputs] == ["x"]


def test_a_network_with_a_tail_is_compressed(tmp_path):
    proto = detector(NMS)
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    network, example = load_model(str(written(tmp_path, proto)))
    run = compress(network, Recipe.preset("w8a8").updated(["signal.images=8"]), example)
    assert len(run.layers) == 1
    check = export_onnx(run, tmp_path / "small.onnx")
    assert check.sqnr_db > min(check.quantization_db + 10, 80)
    small = onnx.load(tmp_path / "small.onnx")
    assert [v.name for v in small.graph.output] == ["y"] and small.graph.node[-1].op_type == "NonMaxSuppression"
    assert expected(tmp_path / "small.onnx", example)[0].shape[1] == 3


HAZARDS = (
    "residual",
    "grouped",
    "squeeze and excitation",
    "channel shuffle and split",
    "pools",
    "activations",
    "upsampling by every transposed conv",
)
SKIPPED = ("in place through a view", "two inputs", "keyword spotting", "1-d autoencoder")


@pytest.mark.parametrize(
    "name",
    [n if n in HAZARDS else pytest.param(n, marks=pytest.mark.slow) for n in NETS if n not in SKIPPED],
)
def test_what_is_written_is_read(name, tmp_path):
    """The folded network of every tiny net, by way of a file: the same function, the same layers."""
    net, inputs = NETS[name]()
    graph = trace(net, inputs)
    fold_batchnorm_(graph)
    try:
        proto = translate(graph, opset=21, int4=False)
    except ValueError:
        pytest.skip("this net cannot be written")
    network, example = load_onnx(written(tmp_path, proto), tuple(inputs[0].shape))
    with torch.no_grad():
        for found, one in zip(tree_leaves(network(*inputs)), tree_leaves(graph(*inputs)), strict=True):
            torch.testing.assert_close(found, one, rtol=1e-4, atol=1e-5)
    again = trace(network, example)
    assert len(g.layers(again)) == len(g.layers(graph))


@pytest.mark.parametrize("preset", ["w8a8", "w4a8"])
def test_same_student_as_from_python(preset, tmp_path):
    """With BatchNorm in the file, bit for bit."""
    net, inputs = NETS["residual"]()
    path = written(tmp_path, translate(trace(net, inputs), opset=21, int4=False))
    recipe = Recipe.preset(preset).updated(["signal.kind=propagated", "signal.images=8"])
    wanted, found = (compress(model, recipe, inputs[0]) for model in (net, load_model(str(path))[0]))
    assert [layer.name for layer in found.layers] == [layer.name for layer in wanted.layers]
    with torch.no_grad():
        torch.testing.assert_close(found.student(*inputs), wanted.student(*inputs), rtol=0, atol=0)


REFUSED = {
    "quantized": (
        model(node("DynamicQuantizeLinear", "x", "y")), "is quantized already.*float network it was made from",
    ),
    "domain": (
        model(helper.make_node("Fused", ["x"], ["y"], domain="com.example")),
        r"domain 'com.example'.*operators of ONNX alone",
    ),
    "opset": (model(node("Relu", "x", "y"), opset=6), "is of opset 6; 7 to 22 are read"),
    "opset too new": (
        model(node("Conv", "x w b", "y"), constants=CONV, opset=99),
        "is of opset 99; 7 to 22 are read: export it anew with another opset",
    ),
    "operator": (model(node("Det", "x", "y")), r"Det \(/net/y/Det\): not read; allowed are Abs, Add"),
    "nothing to compress": (
        model(node("Relu", "x", "a"), node("Relu", "a", "b"), node("Abs", "b", "y")),
        r"no convolution and no linear layer \(Relu 2, Abs 1\)",
    ),
    "transformer": (
        model(
            node("MatMul", "x q", "a"), node("Transpose", "a", "t", perm=[0, 1, 3, 2]), node("MatMul", "a t", "s"),
            node("Softmax", "s", "p"), node("MatMul", "p a", "y"), constants={"q": floats(9, 9)},
        ),
        r"is a transformer without convolutions \(MatMul 3, Softmax 1, Transpose 1\); networks with convolutions are",
    ),
    "layers behind": (
        model(node("Conv", "x w b", "c"), node("RandomNormalLike", "c", "d"), node("MatMul", "d m", "y"),
              constants={**CONV, "m": floats(7, 2)}),
        r"RandomNormalLike \(/net/d/RandomNormalLike\): not read, and layers follow it \(MatMul \(/net/y/MatMul\)\)",
    ),
    "domain with weights": (
        model(
            node("Conv", "x w b", "c"), helper.make_node("FusedConv", ["c", "w2"], ["y"], domain="com.microsoft"),
            constants={**CONV, "w2": floats(4, 4, 1, 1)},
        ),
        r"FusedConv \(y\) is of the domain 'com.microsoft', unknown here; export the network with operators of ONNX",
    ),
    "layers in control flow": (
        model(
            node("Conv", "x w b", "c"),
            helper.make_node(
                "Loop", ["most", "", "c"], ["y"], name="loop",
                body=helper.make_graph([node("Conv", "i w b", "o")], "body", [], []),
            ),
            constants={**CONV, "most": np.int64(2)},
        ),
        r"Loop \(loop\) holds a network of its own.*without control flow",
    ),
    "reset before the product": (
        model(node("GRU", "x w r", "o", hidden_size=2), node("MatMul", "o m", "y"), shape=(9, 1, 3),
              constants={"w": floats(1, 6, 3), "r": floats(1, 6, 2), "m": floats(2, 2)}),
        r"GRU \(/net/o/GRU\): a reset before the product is not read; export the network without it",
    ),
    "control flow": (
        model(
            helper.make_node(
                "If", ["x"], ["y"], name="choice",
                then_branch=helper.make_graph([], "a", [], []), else_branch=helper.make_graph([], "b", [], []),
            )
        ),
        r"If \(choice\) holds a network of its own.*without control flow",
    ),
    "size": (
        model(node("Conv", "x w b", "y"), constants=CONV, shape=("n", 3, "h", "w")),
        "say at which size, as in 1,3,224,224",
    ),
    "shapes": (
        model(node("Conv", "x w b", "y"), constants={"w": floats(4, 5, 3, 3), "b": floats(4)}, shape=(1, 3, 9, 9)),
        r"does not run at \(1, 3, 9, 9\).*give another input shape",
    ),
    "resizing": (
        model(
            node("Resize", "x  scales", "u", mode="cubic"), node("Conv", "u w b", "y"),
            constants={**CONV, "scales": np.array([1, 1, 2, 2], np.float32)},
        ),
        "resizing cubic with half_pixel is not read",
    ),
}  # fmt: skip


SHAPES = {"size": None, "reset before the product": (9, 1, 3)}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name, tmp_path):
    proto, message = REFUSED[name]
    with pytest.raises(ModelError, match=message):
        load_onnx(written(tmp_path, proto), SHAPES.get(name, (1, 3, 9, 9)))


def test_a_shape_that_does_not_fit(tmp_path):
    path = written(tmp_path, model(node("Conv", "x w b", "y"), constants=CONV))
    with pytest.raises(ModelError, match=r"the input x is \(any, 3, 9, 9\); \(1, 1, 9, 9\) does not fit"):
        load_onnx(path, (1, 1, 9, 9))


def two_inputs(shape=IMAGE, kind=1):
    proto = model(node("Add", "x z", "s"), node("Conv", "s w b", "y"), constants=CONV)
    proto.graph.input.append(helper.make_tensor_value_info("z", kind, shape))
    return proto


def test_two_inputs(tmp_path):
    path = written(tmp_path, two_inputs(("n", "c", "h", "w")))
    network, example = load_onnx(path, (1, 3, 9, 9))
    x, z = (torch.from_numpy(floats(1, 3, 9, 9)) for _ in example)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    wanted = torch.from_numpy(session.run(None, {"x": x.numpy(), "z": z.numpy()})[0])
    torch.testing.assert_close(network(x, z), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trace(network, example)(x, z), wanted, rtol=1e-4, atol=1e-5)
    run = compress(network, Recipe.preset("w8a8").updated(["signal.images=8"]), example)
    torch.testing.assert_close(run.teacher(x, z), wanted, rtol=1e-3, atol=1e-4)


def test_an_input_that_is_no_batch_of_floats_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"the input z is \(\), which is no batch; networks are read whose inputs all"):
        load_onnx(written(tmp_path, two_inputs(())))
    with pytest.raises(
        ModelError, match=r"the input z holds int32, which Add .* reads; networks whose inputs are floats"
    ):
        load_onnx(written(tmp_path, two_inputs(IMAGE, kind=6)))


def test_bytes_that_are_cast_are_floats_here(tmp_path):
    proto = model(helper.make_node("Cast", ["x"], ["f"], to=1), node("Conv", "f w b", "y"), constants=CONV)
    proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    network, example = load_onnx(written(tmp_path, proto))
    assert network(example).shape == (1, 4, 7, 7)


def test_an_altered_file_is_read_or_refused(tmp_path):
    """Every byte in turn, a few at a time, and every length: a network or one line, nothing else."""
    path = written(tmp_path, model(node("Conv", "x w b", "y"), node("Relu", "y", "z"), constants=CONV, outputs=("z",)))
    content = path.read_bytes()
    places = range(0, len(content), 7)
    altered = [content[:i] + bytes([content[i] ^ 0x5A]) + content[i + 1 :] for i in places]
    for found in [*altered, *(content[:i] for i in places)]:
        path.write_bytes(found)
        try:
            load_onnx(path)
        except ModelError as error:
            assert "\n" not in str(error)


def test_no_file_and_a_damaged_one(tmp_path):
    with pytest.raises(ModelError, match=r"there is no file .*none\.onnx"):
        load_onnx(tmp_path / "none.onnx")
    path = written(tmp_path, model(node("Conv", "x w b", "y"), constants=CONV))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelError, match="is not an ONNX file, or is cut off"):
        load_onnx(path)


def beside(tmp_path, location="w.bin"):
    """A file that keeps its weights in another one, and says that it is at `location`."""
    path = tmp_path / "net.onnx"
    proto = model(node("Conv", "x w b", "y"), constants=CONV)
    onnx.save(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    proto = onnx.load(path, load_external_data=False)
    for entry in (e for tensor in proto.graph.initializer for e in tensor.external_data if e.key == "location"):
        entry.value = str(location)
    onnx.save(proto, path)
    return path


def test_weights_beside_the_file(tmp_path):
    network, example = load_onnx(beside(tmp_path))
    whole = tmp_path / "whole"
    whole.mkdir()
    wanted, _ = load_onnx(written(whole, model(node("Conv", "x w b", "y"), constants=CONV)))
    torch.testing.assert_close(network(example + 1), wanted(example + 1), rtol=0, atol=0)
    assert files_of(tmp_path / "net.onnx") == (tmp_path / "net.onnx", tmp_path / "w.bin")
    known = provenance(str(tmp_path / "net.onnx"))
    changed = bytearray((tmp_path / "w.bin").read_bytes())
    changed[0] ^= 1
    (tmp_path / "w.bin").write_bytes(changed)
    assert provenance(str(tmp_path / "net.onnx")) != known


@pytest.mark.parametrize("kind", ["gone", "above", "absolute", "link", "cut"])
def test_weights_that_are_not_beside_the_file(kind, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    path = beside(folder, {"above": "../w.bin", "absolute": tmp_path / "w.bin"}.get(kind, "w.bin"))
    content = (folder / "w.bin").read_bytes()
    (tmp_path / "w.bin").write_bytes(content)
    if kind in ("gone", "link"):
        (folder / "w.bin").unlink()
    if kind == "link":
        (folder / "w.bin").symlink_to(tmp_path / "w.bin")
    if kind == "cut":
        (folder / "w.bin").write_bytes(content[:100])
    message = {"gone": "in another file, 'w.bin', which is not there; put it beside it"}.get(
        kind,
        "keeps the weight 'w' in another file, which cannot be read: .*; it has to be a whole file of its own in the",
    )
    with pytest.raises(ModelError, match=message) as caught:
        load_onnx(path)
    assert "\n" not in str(caught.value) and tmp_path / "w.bin" not in files_of(path)


def test_a_file_holds_its_own_weights():
    with pytest.raises(ModelError, match="holds its own weights; leave weights and pretrained out"):
        load_model("net.onnx", pretrained=True)
