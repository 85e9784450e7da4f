"""What computes: ATen operators and the ONNX nodes that mean the same; for what moves values see `shape_operators`.

A row maps an operator to a function `(call, *arguments of the schema, defaults filled in) -> name of the value`;
tensors arrive as names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx

from datafree import graph as g
from datafree.export.onnx.writer import Call
from datafree.graph import aten

Number = int | float
Value = str | Number
Pair = list[int]


# ---- element by element


def _unary(kind: str) -> Callable[..., str]:
    return lambda call, x: call.emit(kind, x)


def _binary(kind: str) -> Callable[..., str]:
    def write(call: Call, a: Value, b: Value, alpha: Number = 1) -> str:
        if alpha != 1:
            b = call.emit("Mul", _operand(call, b), call.floats(alpha), step="alpha")
        return call.emit(kind, _operand(call, a), _operand(call, b))

    return write


def _operand(call: Call, value: Value) -> str:
    return value if isinstance(value, str) else call.floats(value)


def _clip(call: Call, x: str, low: Number | None, high: Number | None) -> str:
    return call.emit("Clip", x, None if low is None else call.floats(low), None if high is None else call.floats(high))


def _hardsigmoid(call: Call, x: str, step: str = "") -> str:
    return call.emit("HardSigmoid", x, step=step, alpha=1 / 6, beta=0.5)


def _gelu(call: Call, x: str, approximate: str) -> str:
    if call.writer.opset >= 20 or approximate != "none":
        call.since(20, "Gelu")
        return call.emit("Gelu", x, approximate=approximate)
    erf = call.emit("Erf", call.emit("Mul", x, call.floats(math.sqrt(0.5)), step="scaled"), step="erf")
    half = call.emit("Mul", x, call.floats(0.5), step="half")
    return call.emit("Mul", half, call.emit("Add", erf, call.floats(1.0), step="gate"))


def _mish(call: Call, x: str) -> str:
    return call.emit("Mul", x, call.emit("Tanh", call.emit("Softplus", x, step="softplus"), step="tanh"))


def _elu(call: Call, x: str, alpha: Number, scale: Number, input_scale: Number) -> str:
    if (scale, input_scale) != (1, 1):
        call.refuse(f"scale {scale} and input_scale {input_scale}")
    return call.emit("Elu", x, alpha=float(alpha))


def _softplus(call: Call, x: str, beta: Number, threshold: Number) -> str:
    """Beyond its threshold PyTorch returns x, which differs from the formula by less than a float32 can hold."""
    if beta == 1:
        return call.emit("Softplus", x)
    soft = call.emit("Softplus", call.emit("Mul", x, call.floats(beta), step="scaled"), step="softplus")
    return call.emit("Div", soft, call.floats(beta))


def _to_dtype(call: Call, x: str, dtype: torch.dtype, *rest: object) -> str:
    if dtype != torch.float32:
        call.refuse(f"the network computes in {dtype} there")
    return x


def _prelu(call: Call, x: str, slope: str) -> str:
    rank = len(call.shape)
    shaped = call.emit("Reshape", slope, call.ints([-1, *[1] * (rank - 2)]), step="slope") if rank > 2 else slope
    return call.emit("PRelu", x, shaped)


# ---- layers


def _conv(call: Call, x: str, weight: str, bias: str | None, *settings: Any) -> str:
    stride, padding, dilation, groups = settings
    rank = len(call.shape) - 2
    return call.emit(
        "Conv", x, weight, bias, strides=_full(stride, rank), pads=_full(padding, rank) * 2,
        dilations=_full(dilation, rank), group=groups,
    )  # fmt: skip


def _conv_transpose(call: Call, x: str, weight: str, bias: str | None, *settings: Any) -> str:
    stride, padding, output_padding, groups, dilation = settings
    rank = len(call.shape) - 2
    return call.emit(
        "ConvTranspose", x, weight, bias, strides=_full(stride, rank), pads=_full(padding, rank) * 2,
        output_padding=_full(output_padding, rank), dilations=_full(dilation, rank), group=groups,
    )  # fmt: skip


def _full(value: int | Pair, rank: int) -> Pair:
    sides = [value] if isinstance(value, int) else list(value)
    return sides * rank if len(sides) == 1 else sides


def _linear(call: Call, x: str, weight: str, bias: str | None) -> str:
    """Gemm, which is what has an integer kernel with a bias; other ranks become rows and come back."""
    if len(call.shape) == 2:
        return call.emit("Gemm", x, weight, bias, transB=1)
    rows = call.emit("Reshape", x, call.ints([-1, call.input_shape[-1]]), step="rows")
    rows = call.emit("Gemm", rows, weight, bias, step="product", transB=1)
    if not call.writer.has_open_sizes:
        return call.emit("Reshape", rows, call.ints([-1, *call.shape[1:]]))
    sides = call.emit("Shape", x, step="shape")
    sides = call.emit("Slice", sides, call.ints([0]), call.ints([-1]), step="sides")
    return call.emit("Reshape", rows, call.emit("Concat", sides, call.ints([call.shape[-1]]), step="sizes", axis=0))


# ---- pooling, reductions, normalisation


def _mean(call: Call, x: str, dims: list[int] | None, keepdim: bool, dtype: object) -> str:
    axes = _axes(call, dims)
    if len(call.input_shape) == 4 and axes == [2, 3]:  # has an integer kernel where ReduceMean has none
        pooled = call.emit("GlobalAveragePool", x, step="" if keepdim else "pooled")
        return pooled if keepdim else call.emit("Reshape", pooled, call.ints([0, -1]))
    return _reduce(call, "ReduceMean", x, axes, keepdim)


def _amax(call: Call, x: str, dims: list[int], keepdim: bool) -> str:
    return _reduce(call, "ReduceMax", x, _axes(call, dims), keepdim)


def _reduce(call: Call, kind: str, x: str, axes: list[int], keepdim: bool, step: str = "") -> str:
    """Axes are an input since opset 18, an attribute before."""
    if call.writer.opset >= 18:
        return call.emit(kind, x, call.ints(axes), step=step, keepdims=int(keepdim))
    return call.emit(kind, x, step=step, axes=axes, keepdims=int(keepdim))


def _variance(call: Call, x: str, dims: list[int] | None, correction: Number | None, keepdim: bool) -> str:
    """Of n values their mean square around the mean, times n / (n - correction); left out, the correction is 1."""
    axes, less = _axes(call, dims), 1 if correction is None else correction
    if 0 in axes:
        call.refuse("it reaches over the batch")
    count = math.prod(call.input_shape[axis] for axis in axes)
    off = call.emit("Sub", x, _reduce(call, "ReduceMean", x, axes, True, "mean"), step="off")
    square = call.emit("Mul", off, off, step="square")
    if not less:
        return _reduce(call, "ReduceMean", square, axes, keepdim)
    mean = _reduce(call, "ReduceMean", square, axes, keepdim, "biased")
    return call.emit("Mul", mean, call.floats(count / (count - less) if count > less else math.nan))


def _vector_norm(call: Call, x: str, order: Number, dims: list[int] | None, keepdim: bool, dtype: object = None) -> str:
    if order not in (1, 2):
        call.refuse(f"a norm of order {order}")
    return _reduce(call, f"ReduceL{order:g}", x, _axes(call, dims), keepdim)


def _rms_norm(call: Call, x: str, shape: list[int], weight: str | None, eps: Number | None) -> str:
    rank, given = len(call.shape), eps if eps is not None else torch.finfo(torch.float32).eps
    square = call.emit("Mul", x, x, step="square")
    mean = _reduce(call, "ReduceMean", square, list(range(rank - len(shape), rank)), True, "mean")
    root = call.emit("Sqrt", call.emit("Add", mean, call.floats(given), step="shifted"), step="root")
    return call.emit("Div", x, root) if weight is None else call.emit(
        "Mul", call.emit("Div", x, root, step="normalised"), weight
    )  # fmt: skip


def _addcmul(call: Call, x: str, first: str, second: str, value: Number) -> str:
    product = call.emit("Mul", first, second, step="product")
    if value != 1:
        product = call.emit("Mul", product, call.floats(value), step="scaled")
    return call.emit("Add", x, product)


def _dtype_kept(node: fx.Node) -> torch.dtype | None:
    """Of a tensor of the network; None = it is computed."""
    kept = node.op == "get_attr" and node.graph.owning_module
    return g.get_tensor(kept, str(node.target)).dtype if kept else None


def _attention(
    call: Call, query: str, key: str, value: str, mask: str | None, dropout: Number, causal: bool, *settings: Any
) -> str:
    """softmax(q k' scale + mask) v."""
    scale, shares_heads = settings
    if causal or shares_heads:
        call.refuse("is_causal or enable_gqa")
    if mask is not None and _dtype_kept(g.argument(call.node, "attn_mask")) not in (None, torch.float32):
        call.refuse("a mask that is not of float32")
    rank, size = len(call.shape), call.input_shape[-1]
    turned = call.emit("Transpose", key, perm=[*range(rank - 2), rank - 1, rank - 2], step="turned")
    product = call.emit("MatMul", query, turned, step="product")
    found = call.emit("Mul", product, call.floats(size**-0.5 if scale is None else scale), step="scaled")
    found = found if mask is None else call.emit("Add", found, mask, step="masked")
    return call.emit("MatMul", call.emit("Softmax", found, step="weights", axis=-1), value)


def _sum(call: Call, x: str, dims: list[int] | None, keepdim: bool, dtype: object) -> str:
    return call.emit("ReduceSum", x, call.ints(_axes(call, dims)), keepdims=int(keepdim))


def _axes(call: Call, dims: list[int] | None) -> list[int]:
    rank = len(call.input_shape)
    return sorted(d % rank for d in (dims or range(rank)))


def _max_pool(
    call: Call, x: str, kernel: Pair, stride: Pair, padding: int | Pair, dilation: int | Pair, ceil_mode: bool
) -> str:
    rank = len(call.shape) - 2
    return call.emit(
        "MaxPool", x, kernel_shape=_full(kernel, rank), strides=_full(stride or kernel, rank),
        pads=_full(padding, rank) * 2, dilations=_full(dilation, rank), ceil_mode=int(ceil_mode),
    )  # fmt: skip


def _avg_pool(call: Call, x: str, kernel: Pair, *settings: Any) -> str:
    stride, padding, ceil_mode, count_include_pad, *divisor = settings
    if divisor not in ([], [None]):
        call.refuse("divisor_override")
    rank = len(call.shape) - 2
    return call.emit(
        "AveragePool", x, kernel_shape=_full(kernel, rank), strides=_full(stride or kernel, rank),
        pads=_full(padding, rank) * 2, ceil_mode=int(ceil_mode), count_include_pad=int(count_include_pad),
    )  # fmt: skip


def _adaptive_pool(kind: str) -> Callable[..., str]:
    def write(call: Call, x: str, size: Pair) -> str:
        given = call.input_shape[2:]
        wanted = _full(size, len(given))
        if set(wanted) == {1}:
            return call.emit(f"Global{kind}", x)
        if any(have % want for have, want in zip(given, wanted, strict=True)):
            if kind == "MaxPool":
                call.refuse(f"windows of unequal size, {list(given)} to {wanted}")
            return _average_of_unequal(call, x, given, wanted)
        window = [have // want for have, want in zip(given, wanted, strict=True)]
        return call.emit(kind, x, kernel_shape=window, strides=window)

    return write


def _average_of_unequal(call: Call, x: str, given: tuple[int, ...], wanted: Pair) -> str:
    """Dimension by dimension from the left by the matrix of its windows (out, in), as a second-last one."""
    rank = len(given) + 2
    swap = [*range(rank - 2), rank - 1, rank - 2]
    for dim, (have, want) in enumerate(zip(given, wanted, strict=True)):
        windows, last = call.floats(_windows(have, want)), dim == len(given) - 1
        rows = call.emit("Transpose", x, perm=swap, step=f"columns_{dim}") if last else x
        x = call.emit("MatMul", windows, rows, step=f"averages_{dim}")
    return call.emit("Transpose", x, perm=swap)


def _windows(have: int, want: int) -> np.ndarray:
    """Row i averages places floor(i have / want) to ceil((i + 1) have / want), as PyTorch does."""
    rows = np.zeros((want, have))
    for i, row in enumerate(rows):
        window = row[i * have // want : -(-(i + 1) * have // want)]
        window[:] = 1 / len(window)
    return rows


def _layer_norm(
    call: Call, x: str, shape: list[int], weight: str | None, bias: str | None, eps: float, cudnn: bool
) -> str:
    call.since(17, "LayerNormalization")
    weight = weight or call.floats(np.ones(shape))
    return call.emit("LayerNormalization", x, weight, bias, axis=-len(shape), epsilon=float(eps))


def _group_norm(call: Call, x: str, groups: int, weight: str | None, bias: str | None, eps: float, cudnn: bool) -> str:
    """Each group as one channel of an instance normalisation, whose own scale and shift do nothing."""
    rows = call.emit("Reshape", x, call.ints([0, groups, -1]), step="groups")
    ones, zeros = call.floats(np.ones(groups)), call.floats(np.zeros(groups))
    rows = call.emit("InstanceNormalization", rows, ones, zeros, step="normalised", epsilon=float(eps))
    value = call.emit("Reshape", rows, call.ints([-1, *call.shape[1:]]), step="" if weight is None else "whole")
    column = call.ints([-1, *[1] * (len(call.shape) - 2)])
    if weight is not None:
        value = call.emit("Mul", value, call.emit("Reshape", weight, column, step="weight"), step="scaled")
    if bias is not None:
        value = call.emit("Add", value, call.emit("Reshape", bias, column, step="bias"))
    return value


def _instance_norm(call: Call, x: str, weight: str | None, bias: str | None, *settings: Any) -> str:
    _, _, uses_batch, _, eps, _ = settings
    if not uses_batch:
        call.refuse("it uses running statistics")
    return call.emit("InstanceNormalization", x, *_affine(call, weight, bias), epsilon=float(eps))


def _batch_norm(call: Call, x: str, weight: str | None, bias: str | None, *settings: Any) -> str:
    """One whose statistics are no parameters of the network, so that it was not folded."""
    mean, var, training, _, eps, _ = settings
    if training or mean is None or var is None:
        call.refuse("it normalises by the statistics of the batch")
    return call.emit("BatchNormalization", x, *_affine(call, weight, bias), mean, var, epsilon=float(eps))


def _affine(call: Call, weight: str | None, bias: str | None) -> tuple[str, str]:
    """Scale and shift of every channel, which ONNX wants even where they do nothing."""
    channels = call.shape[1]
    return weight or call.floats(np.ones(channels)), bias or call.floats(np.zeros(channels))


def _resize(mode: str) -> Callable[..., str]:
    def write(call: Call, x: str, size: Pair | None, *rest: Any) -> str:
        coordinates = "asymmetric" if mode == "nearest" else "align_corners" if rest[0] else "half_pixel"
        factors = rest[-1] if mode != "nearest" else None  # nearest takes the pixel of the size, not of the factor
        sides = zip(call.shape[2:], call.input_shape[2:], strict=True)
        factors = [np.float32(f) for f in (factors or [o / i for o, i in sides])]
        # the size is rounded down from the factor: never let it fall short by a rounding error
        factors = [np.nextafter(f, np.float32(np.inf)) if f % 1 else f for f in factors]
        return call.emit(
            "Resize", x, None, call.floats(np.array([1, 1, *factors])), mode=mode,
            coordinate_transformation_mode=coordinates, nearest_mode="floor",
        )  # fmt: skip

    return write


OPERATORS: dict[object, Callable[..., str | list[str]]] = {
    aten.relu.default: _unary("Relu"),
    aten.sigmoid.default: _unary("Sigmoid"),
    aten.tanh.default: _unary("Tanh"),
    aten.exp.default: _unary("Exp"),
    aten.log.default: _unary("Log"),
    aten.sqrt.default: _unary("Sqrt"),
    aten.abs.default: _unary("Abs"),
    aten.neg.default: _unary("Neg"),
    aten.reciprocal.default: _unary("Reciprocal"),
    aten.square.default: lambda call, x: call.emit("Mul", x, x),
    aten.rsqrt.default: lambda call, x: call.emit("Reciprocal", call.emit("Sqrt", x, step="sqrt")),
    aten.add.Tensor: _binary("Add"),
    aten.add.Scalar: _binary("Add"),
    aten.sub.Tensor: _binary("Sub"),
    aten.sub.Scalar: _binary("Sub"),
    aten.rsub.Scalar: lambda call, x, other, alpha: _binary("Sub")(call, other, x, alpha),
    aten.mul.Tensor: _binary("Mul"),
    aten.mul.Scalar: _binary("Mul"),
    aten.div.Tensor: _binary("Div"),
    aten.div.Scalar: _binary("Div"),
    aten.maximum.default: _binary("Max"),
    aten.minimum.default: _binary("Min"),
    aten.max.other: _binary("Max"),
    aten.min.other: _binary("Min"),
    aten.pow.Tensor_Scalar: _binary("Pow"),
    aten.addcmul.default: _addcmul,
    aten.einsum.default: lambda call, equation, parts, path: call.emit("Einsum", *parts, equation=equation),
    aten.scaled_dot_product_attention.default: _attention,
    aten.matmul.default: _binary("MatMul"),
    aten.bmm.default: _binary("MatMul"),
    aten.hardtanh.default: _clip,
    aten.clamp.default: _clip,
    aten.clamp_min.default: lambda call, x, low: _clip(call, x, low, None),
    aten.clamp_max.default: lambda call, x, high: _clip(call, x, None, high),
    aten.relu6.default: lambda call, x: _clip(call, x, 0.0, 6.0),
    aten.silu.default: lambda call, x: call.emit("Mul", x, call.emit("Sigmoid", x, step="gate")),
    aten.hardsigmoid.default: _hardsigmoid,
    aten.hardswish.default: lambda call, x: call.emit("Mul", x, _hardsigmoid(call, x, "gate")),
    aten.gelu.default: _gelu,
    aten.mish.default: _mish,
    aten.elu.default: _elu,
    aten.leaky_relu.default: lambda call, x, slope: call.emit("LeakyRelu", x, alpha=float(slope)),
    aten.prelu.default: _prelu,
    aten._prelu_kernel.default: lambda call, x, slope: call.emit("PRelu", x, slope),
    aten.selu.default: _unary("Selu"),
    aten.celu.default: lambda call, x, alpha: call.emit("Celu", x, alpha=float(alpha)),
    aten.softplus.default: _softplus,
    aten.to.dtype: _to_dtype,
    aten.softmax.int: lambda call, x, dim, dtype: call.emit("Softmax", x, axis=dim),
    aten.conv1d.default: _conv,
    aten.conv2d.default: _conv,
    aten.conv3d.default: _conv,  # in float
    aten.conv_transpose1d.default: _conv_transpose,
    aten.conv_transpose2d.input: _conv_transpose,
    aten.linear.default: _linear,
    aten.mean.dim: _mean,
    aten.sum.dim_IntList: _sum,
    aten.amax.default: _amax,
    aten.var.correction: _variance,
    aten.var.dim: lambda call, x, dims, unbiased, keepdim: _variance(call, x, dims, int(unbiased), keepdim),
    aten.linalg_vector_norm.default: _vector_norm,
    aten.norm.ScalarOpt_dim: lambda call, x, order, dims, keepdim: _vector_norm(call, x, order or 2, dims, keepdim),
    aten.rms_norm.default: _rms_norm,
    aten.max_pool1d.default: _max_pool,
    aten.max_pool2d.default: _max_pool,
    aten.avg_pool1d.default: _avg_pool,
    aten.avg_pool2d.default: _avg_pool,
    aten.adaptive_avg_pool1d.default: _adaptive_pool("AveragePool"),
    aten.adaptive_avg_pool2d.default: _adaptive_pool("AveragePool"),
    aten.adaptive_max_pool1d.default: lambda call, x, size: [_adaptive_pool("MaxPool")(call, x, size)],
    aten.adaptive_max_pool2d.default: lambda call, x, size: [_adaptive_pool("MaxPool")(call, x, size)],
    aten.layer_norm.default: _layer_norm,
    aten.group_norm.default: _group_norm,
    aten.instance_norm.default: _instance_norm,
    aten.batch_norm.default: _batch_norm,
    aten.upsample_nearest1d.vec: _resize("nearest"),
    aten.upsample_linear1d.vec: _resize("linear"),
    aten.upsample_nearest2d.vec: _resize("nearest"),
    aten.upsample_bilinear2d.vec: _resize("linear"),
}
