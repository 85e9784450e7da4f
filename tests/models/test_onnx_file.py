"""ONNX files are read as the networks they are: against ONNX Runtime, alone and after capture, and refused by name."""

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from datafree import Recipe, compress, load_model
from datafree import graph as g
from datafree.export.onnx.translate import translate
from datafree.graph.capture import trace
from datafree.models.onnx_file import OnnxNetwork, load_onnx
from datafree.models.onnx_file.graph import read_graph
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


def test_same_student_as_from_python(tmp_path):
    net, inputs = NETS["residual"]()
    graph = trace(net, inputs)
    fold_batchnorm_(graph)
    path = written(tmp_path, translate(graph, opset=21, int4=False))
    network, example = load_model(str(path))
    recipe = Recipe.preset("w8a8").updated(["signal.images=8"])
    run = compress(network, recipe, example)
    with torch.no_grad():
        wanted, found = graph(*inputs), run.student(*inputs)
    assert float((found - wanted).square().mean()) < 1e-3 * float(wanted.var())


REFUSED = {
    "quantized": (
        model(node("DynamicQuantizeLinear", "x", "y")), "is quantized already.*float network it was made from",
    ),
    "domain": (
        model(helper.make_node("Fused", ["x"], ["y"], domain="com.example")),
        r"domain 'com.example'.*operators of ONNX alone",
    ),
    "opset": (model(node("Relu", "x", "y"), opset=6), "is of opset 6; 7 to 22 are read"),
    "operator": (model(node("Det", "x", "y")), r"Det \(/net/y/Det\): not read; allowed are Abs, Add"),
    "nothing to compress": (model(node("Relu", "x", "y")), "no convolution and no linear layer"),
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


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name, tmp_path):
    proto, message = REFUSED[name]
    with pytest.raises(ModelError, match=message):
        load_onnx(written(tmp_path, proto), None if name == "size" else (1, 3, 9, 9))


def test_a_shape_that_does_not_fit(tmp_path):
    path = written(tmp_path, model(node("Conv", "x w b", "y"), constants=CONV))
    with pytest.raises(ModelError, match=r"the input x is \(any, 3, 9, 9\); \(1, 1, 9, 9\) does not fit"):
        load_onnx(path, (1, 1, 9, 9))


def test_two_inputs_are_refused(tmp_path):
    proto = model(node("Add", "x z", "s"), node("Conv", "s w b", "y"), constants=CONV)
    proto.graph.input.append(helper.make_tensor_value_info("z", 1, IMAGE))
    with pytest.raises(ModelError, match=r"has 2 inputs \(x, z\); files with one input are read"):
        load_onnx(written(tmp_path, proto), (1, 3, 9, 9))


def test_no_file_and_a_damaged_one(tmp_path):
    with pytest.raises(ModelError, match=r"there is no file .*none\.onnx"):
        load_onnx(tmp_path / "none.onnx")
    path = written(tmp_path, model(node("Conv", "x w b", "y"), constants=CONV))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelError, match="is not an ONNX file, or is cut off"):
        load_onnx(path)


def test_weights_beside_the_file_that_are_gone(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(
        model(node("Conv", "x w b", "y"), constants=CONV), path, save_as_external_data=True, location="w.bin",
        size_threshold=0,
    )  # fmt: skip
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelError, match=r"keeps its weights in another file.*put it beside it"):
        load_onnx(path)


def test_a_file_holds_its_own_weights():
    with pytest.raises(ModelError, match="holds its own weights; leave weights and pretrained out"):
        load_model("net.onnx", pretrained=True)
