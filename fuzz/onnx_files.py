"""ONNX files: `load_model("net.onnx")`, with weights in another file beside it."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fuzz import faults
from fuzz.harness import Target, fuzz, instrumented

with instrumented("onnx.reference", "onnx.numpy_helper", "onnx.external_data_helper"):
    from datafree.models import ModelError, load_model

BESIDE = "weights.bin"


def model(*nodes: onnx.NodeProto, opset: int = 17, **constants: np.ndarray) -> onnx.ModelProto:
    weight = np.linspace(-1, 1, 108, dtype=np.float32).reshape(4, 3, 3, 3)
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in {"w": weight, **constants}.items()]
    ends = [helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", ("n", 3, 8, 8)), ("y", None))]
    first = helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    graph = helper.make_graph([first, *nodes], "net", ends[:1], ends[1:], initializer=tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def seeds() -> list[bytes]:
    node = helper.make_node
    ones = np.ones(4, np.float32)
    norm = [node("BatchNormalization", ["c", "s", "s", "m", "s"], ["b"]), node("Relu", ["b"], ["y"])]
    flat = [node("GlobalAveragePool", ["c"], ["p"]), node("Flatten", ["p"], ["f"]),
            node("Gemm", ["f", "v", "s"], ["y"], transB=1)]  # fmt: skip
    made = [node("ConstantOfShape", ["size"], ["k"]), node("Add", ["c", "k"], ["y"])]
    sides = [node("Shape", ["c"], ["d"]), node("Slice", ["d", "zero", "two"], ["e"]),
             node("Concat", ["e", "rest"], ["g"], axis=0), node("Reshape", ["c", "g"], ["y"])]  # fmt: skip
    sized = [node("Resize", ["c", "", "scales"], ["r"]), node("MaxPool", ["r"], ["y"], kernel_shape=[2, 2])]
    wide = [node("Range", ["zero_", "count", "one_"], ["l"]), node("Expand", ["l", "shape"], ["n"]),
            node("Tile", ["n", "times"], ["t"]), node("Add", ["c", "t"], ["y"])]  # fmt: skip
    as_is = [node("CumSum", ["c", "one"], ["q"]), node("Conv", ["q", "u"], ["y"])]
    int64 = lambda *values: np.array(values, np.int64)  # noqa: E731
    models = [
        model(*norm, s=ones, m=0 * ones),
        model(*flat, v=np.ones((4, 4), np.float32), s=ones),
        model(*made, size=int64(8, 8)),
        model(*sides, zero=int64(0), two=int64(2), rest=int64(-1)),
        model(*sized, scales=np.array([1, 1, 2, 2], np.float32)),
        model(
            *wide, zero_=np.float32(0), count=np.float32(8), one_=np.float32(1), shape=int64(8, 8), times=int64(1, 1)
        ),
        model(*as_is, one=np.array(1, np.int64), u=np.ones((2, 4, 1, 1), np.float32)),
        model(*norm, s=ones, m=0 * ones, opset=9),
        outside(model(node("Relu", ["c"], ["y"])), BESIDE),
        outside(model(node("Relu", ["c"], ["y"])), "../../etc/passwd"),
    ]
    return [m.SerializeToString() for m in models]


def outside(made: onnx.ModelProto, place: str) -> onnx.ModelProto:
    """The same network, whose weights lie in another file."""
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", place), ("offset", "0"), ("length", "432")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return made


def read(data: bytes, folder: Path) -> object:
    (folder / "net.onnx").write_bytes(data)
    (folder / BESIDE).write_bytes(np.linspace(-1, 1, 108, dtype=np.float32).tobytes())
    return load_model(str(folder / "net.onnx"))


def fault(data: bytes, dice: random.Random) -> bytes:
    return faults.of_onnx(data, dice)


TARGET = Target("onnx_files", seeds, read, (ModelError,), fault, more=2**31)

if __name__ == "__main__":
    fuzz(TARGET)
