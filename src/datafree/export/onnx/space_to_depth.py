"""The first convolution on blocks of 2x2 pixels: the same integers, and far fewer rows to gather (ours).

Integer kernels gather the inputs of every output from rows of k pixels, and a pixel of an image is 3 bytes. Where the
stride is 2, pixels can be laid side by side in blocks of 2x2 first: 12 channels, half the side, stride 1, half the
kernel. On resnet18's 7x7 stem that is 16 rows of 12 bytes for 49 of 3, and a third of the time
(bench/tables/export.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx
    from onnx import NodeProto as Node

MOST_CHANNELS = 4  # of an image; more of them make rows long enough
BLOCK = 2


def fold_pixels(model: onnx.ModelProto) -> str | None:
    """Write the first convolution, if it reads the quantized image at stride 2, on blocks of pixels.

    Weights w (C_out, C, k, k) become (C_out, 4 C, K, K), K = k / 2 rounded up or one more, with zeros where a block
    reaches beyond the kernel: with t = 2 d + r + p, pixel t of the kernel at padding p is pixel r of block d.

    Returns:
        The convolution's name, None where there is none such.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    made = {name: node for node in graph.node for name in node.output}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
    for conv in [n for n in graph.node if n.op_type == "Conv"]:
        image, kernel = (made.get(name) for name in conv.input[:2])
        if image is None or kernel is None or {image.op_type, kernel.op_type} != {"DequantizeLinear"}:
            continue
        quantize, weight = made.get(image.input[0]), stored.get(kernel.input[0])
        if quantize is None or quantize.op_type != "QuantizeLinear":
            continue
        scaled = made.get(quantize.input[0])  # by the inverse of the image's scale, as the student does
        size = sizes.get(scaled.input[0] if scaled is not None and scaled.op_type == "Mul" else quantize.input[0])
        settings = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
        if size is None or weight is None or weight.data_type != TensorProto.INT8 or not _fits(size, weight, settings):
            continue
        blocks, pads = _blocks(numpy_helper.to_array(weight), settings.get("pads", [0, 0, 0, 0]), size[2:])
        if min(pads) < 0:
            continue
        weight.CopyFrom(numpy_helper.from_array(blocks, weight.name))
        conv.input[0] = _insert_blocks(graph, conv, quantize, image)
        del conv.attribute[:]
        settings |= {"strides": [1, 1], "pads": pads, "kernel_shape": blocks.shape[2:]}
        conv.attribute.extend(helper.make_attribute(name, value) for name, value in settings.items())
        for node in (image, quantize):
            if not any(node.output[0] in n.input for n in graph.node):
                graph.node.remove(node)
        return conv.name
    return None


def _insert_blocks(graph: onnx.GraphProto, conv: Node, quantize: Node, image: Node) -> str:
    """Put blocks of the image, then the same quantization of them, before `conv`; gives what it is to read.

    In this order because ONNX Runtime always had SpaceToDepth of floats, of bytes only since 1.29; both are as fast.
    """
    from onnx import helper

    fold, q, dq = (f"{name}.blocks" for name in (quantize.input[0], quantize.output[0], image.output[0]))
    made = [
        helper.make_node("SpaceToDepth", [quantize.input[0]], [fold], fold, blocksize=BLOCK),
        helper.make_node("QuantizeLinear", [fold, *quantize.input[1:]], [q], q),
        helper.make_node("DequantizeLinear", [q, *image.input[1:]], [dq], dq),
    ]
    for node, like in zip(made[1:], (quantize, image), strict=True):
        node.attribute.extend(like.attribute)
    place = list(graph.node).index(conv)
    for node in reversed(made):
        graph.node.insert(place, node)
    return dq


def _fits(size: list[int], weight: onnx.TensorProto, settings: dict) -> bool:
    """An image of even sides, few channels, stride 2, and a kernel that is wider than a block."""
    return (
        len(size) == 4
        and all(side and side % BLOCK == 0 for side in size[2:])
        and weight.dims[1] <= MOST_CHANNELS
        and min(weight.dims[2:]) > BLOCK
        and settings.get("strides") == [BLOCK, BLOCK]
        and settings.get("group", 1) == 1
        and settings.get("dilations", [1, 1]) == [1, 1]
    )


def _blocks(weight: np.ndarray, pads: list[int], size: list[int]) -> tuple[np.ndarray, list[int]]:
    """A kernel on blocks of pixels, (C_out, 4 C, K, K), and its paddings; a negative one would cut."""
    before, after = [], []
    for axis, (pad, end, side) in enumerate(zip(pads[:2], pads[2:], size, strict=True)):
        taps = weight.shape[2 + 2 * axis]
        first, last = -(-(-pad - 1) // BLOCK), (taps - 1 - pad) // BLOCK
        count = (side + pad + end - taps) // BLOCK + 1  # outputs
        weight = _split(weight, 2 + 2 * axis, first, last, pad)
        before.append(-first)
        after.append(count - 1 + last - first + 1 - side // BLOCK + first)
    c_out, channels, k_rows, rows, k_columns, columns = weight.shape
    laid = weight.transpose(0, 3, 5, 1, 2, 4).reshape(c_out, rows * columns * channels, k_rows, k_columns)
    return np.ascontiguousarray(laid), [*before, *after]


def _split(weight: np.ndarray, axis: int, first: int, last: int, pad: int) -> np.ndarray:
    """An axis of taps as two: blocks from `first` to `last`, and pixels within a block."""
    taps = weight.shape[axis]
    index = BLOCK * np.arange(first, last + 1)[:, None] + np.arange(BLOCK) + pad
    inside = (index >= 0) & (index < taps)
    taken = weight.take(np.where(inside, index, 0), axis)
    return taken * inside.astype(weight.dtype).reshape(inside.shape + (1,) * (weight.ndim - axis - 1))
