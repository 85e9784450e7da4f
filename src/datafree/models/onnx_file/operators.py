"""What ONNX operators compute, in PyTorch: one row each. What has no row is refused by name.

A function gets the node and the values of its inputs: tensors, arrays of integers (constants and shapes), or None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datafree.models.onnx_file.records import Node
from datafree.models.onnx_file.recurrent import gru, lstm
from datafree.models.onnx_file.resize import resize
from datafree.models.onnx_file.shapes import axes_of, ints, slice_arguments
from datafree.models.state_dict import ModelError

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE_POOLS: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def refuse(node: Node, what: str) -> ModelError:
    """The error for a node that means something this package cannot say."""
    return ModelError(f"{node}: {what} is not read; export the network without it")


# ---- layers


def _conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = weight.dim() - 2
    stride, dilation = _sides(node, "strides", rank), _sides(node, "dilations", rank)
    x, padding = _padded(node, x, weight.shape[2:], stride, dilation)
    return CONVOLUTIONS[rank](x, weight, bias, stride, padding, dilation, node.attributes.get("group", 1))


def _conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = weight.dim() - 2
    stride, dilation = _sides(node, "strides", rank), _sides(node, "dilations", rank)
    extra = node.attributes.get("output_padding", [0] * rank)
    before, after = _transposed_pads(node, x, weight.shape[2:], stride, dilation)
    uneven = [a - b for a, b in zip(after, before, strict=True)]
    if any(e - u < 0 for e, u in zip(extra, uneven, strict=True)):  # what is too much is cut off behind
        full = TRANSPOSED[rank](x, weight, bias, stride, 0, extra, node.attributes.get("group", 1), dilation)
        for dim, (b, a) in enumerate(zip(before, after, strict=True)):
            full = full.narrow(dim + 2, b, full.shape[dim + 2] - a - b)
        return full
    extra = [e - u for e, u in zip(extra, uneven, strict=True)]
    return TRANSPOSED[rank](x, weight, bias, stride, before, extra, node.attributes.get("group", 1), dilation)


def _transposed_pads(
    node: Node, x: Tensor, kernel: Sequence[int], stride: list[int], dilation: list[int]
) -> tuple[list[int], list[int]]:
    """What is cut off at both ends: given, or what makes the output `output_shape`, or stride times the input."""
    mode, rank = node.attributes.get("auto_pad", "NOTSET"), len(kernel)
    wanted = node.attributes.get("output_shape")
    if wanted is None and mode in ("NOTSET", "VALID", ""):
        given = list(node.attributes.get("pads", [0] * 2 * rank))
        return given[:rank], given[rank:]
    sides = [side * s for side, s in zip(x.shape[2:], stride, strict=True)] if wanted is None else wanted[-rank:]
    extra = node.attributes.get("output_padding", [0] * rank)
    full = [s * (side - 1) + e + d * (k - 1) + 1
            for s, side, e, d, k in zip(stride, x.shape[2:], extra, dilation, kernel, strict=True)]  # fmt: skip
    total = [f - side for f, side in zip(full, sides, strict=True)]
    less, more = [t // 2 for t in total], [t - t // 2 for t in total]
    return (less, more) if mode == "SAME_UPPER" else (more, less)


def _sides(node: Node, name: str, rank: int) -> list[int]:
    return list(node.attributes.get(name, [1] * rank))


def _padded(
    node: Node, x: Tensor, kernel: Sequence[int], stride: list[int], dilation: list[int]
) -> tuple[Tensor, list[int]]:
    """The input with what cannot be said as an operator's own padding around it, and that padding."""
    before, after = _pads(node, x, kernel, stride, dilation)
    return (x, before) if before == after else (F.pad(x, _around(before, after)), [0] * len(before))


def _around(before: list[int], after: list[int]) -> list[int]:
    """Pads as PyTorch has them: from the last dimension back, both ends of one behind each other."""
    return [side for pair in zip(reversed(before), reversed(after), strict=True) for side in pair]


def _pads(
    node: Node, x: Tensor, kernel: Sequence[int], stride: list[int], dilation: list[int]
) -> tuple[list[int], list[int]]:
    mode, rank = node.attributes.get("auto_pad", "NOTSET"), len(kernel)
    if mode in ("NOTSET", "VALID", ""):
        given = list(node.attributes.get("pads", [0] * 2 * rank)) if mode != "VALID" else [0] * 2 * rank
        return given[:rank], given[rank:]
    before, after = [], []
    for side, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True):
        total = max(0, (-(-side // s) - 1) * s + d * (k - 1) + 1 - side)
        less, more = total // 2, total - total // 2
        before.append(more if mode == "SAME_LOWER" else less)
        after.append(less if mode == "SAME_LOWER" else more)
    return before, after


def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    if node.attributes.get("transA"):
        a = a.t()
    b = b if node.attributes.get("transB") else b.transpose(0, 1)
    alpha, beta = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
    if alpha != 1:
        b = b * alpha
    c = c if c is None or beta == 1 else c * beta
    if c is not None and c.numel() == b.shape[0]:
        return F.linear(a, b, c.reshape(-1))
    return F.linear(a, b) if c is None else F.linear(a, b) + c


def _matmul(node: Node, a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """By a constant matrix it is a linear layer."""
    if isinstance(b, torch.nn.Parameter) and b.dim() == 2:
        return F.linear(a, b.transpose(0, 1), bias)
    return torch.matmul(a, b)


def _batch_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    if node.attributes.get("training_mode"):
        raise refuse(node, "BatchNorm in training mode")
    return F.batch_norm(x, mean, var, scale, bias, training=False, eps=node.attributes.get("epsilon", 1e-5))


def _instance_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=node.attributes.get("epsilon", 1e-5))


def _layer_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = node.attributes.get("axis", -1) % x.dim()
    return F.layer_norm(x, list(x.shape[axis:]), scale, bias, node.attributes.get("epsilon", 1e-5))


# ---- pooling and reductions


def _max_pool(node: Node, x: Tensor) -> Tensor:
    """Pads that differ are the edge's pixels once more, which every window that reaches over it holds anyway."""
    kernel = list(node.attributes["kernel_shape"])
    stride, dilation = _sides(node, "strides", len(kernel)), _sides(node, "dilations", len(kernel))
    before, after = _pads(node, x, kernel, stride, dilation)
    up, pool = bool(node.attributes.get("ceil_mode", 0)), MAX_POOLS[len(kernel)]
    if before != after and any(d > 1 for d in dilation):
        raise refuse(node, "a dilated pool with pads that differ")
    if before != after and not any(before) and _rounds_up(x, kernel, stride, after):
        before, after, up = [0] * len(kernel), [0] * len(kernel), True
    if before != after:
        x, before = F.pad(x, _around(before, after), mode="replicate"), [0] * len(kernel)
    return pool(x, kernel, stride, before, dilation, up)


def _rounds_up(x: Tensor, kernel: list[int], stride: list[int], after: list[int]) -> bool:
    """Pads behind give as many windows as counting those that reach over the edge does."""
    sides = zip(x.shape[2:], kernel, stride, after, strict=True)
    return all((side + a - k) // s == -(-(side - k) // s) for side, k, s, a in sides)


def _average_pool(node: Node, x: Tensor) -> Tensor:
    kernel = list(node.attributes["kernel_shape"])
    stride = _sides(node, "strides", len(kernel))
    counted, up = bool(node.attributes.get("count_include_pad", 0)), bool(node.attributes.get("ceil_mode", 0))
    before, after = _pads(node, x, kernel, stride, [1] * len(kernel))
    pool = AVERAGE_POOLS[len(kernel)]
    if before == after:
        return pool(x, kernel, stride, before, up, counted or not any(before))
    around = _around(before, after)
    pooled = pool(F.pad(x, around), kernel, stride, 0, up)
    if counted:
        return pooled
    inside = pool(F.pad(torch.ones(1, 1, *x.shape[2:]), around), kernel, stride, 0, up)
    return pooled / inside


def _global(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda node, x: function(x, dim=list(range(2, x.dim())), keepdim=True)


def _reduce(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(node: Node, x: Tensor, axes: Any = None) -> Tensor:
        dims = axes_of(node, axes) or list(range(x.dim()))
        return function(x, dim=dims, keepdim=bool(node.attributes.get("keepdims", 1)))

    return run


def _softmax(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(node: Node, x: Tensor) -> Tensor:
        axis = node.attributes.get("axis", -1) % x.dim()
        if not node.attributes.get("flattens") or axis == x.dim() - 1:
            return function(x, axis)
        return function(x.flatten(axis), -1).reshape(x.shape)

    return run


# ---- element by element


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda node, x: function(x if isinstance(x, Tensor) else torch.tensor(x.astype(np.float32)))


def _binary(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda node, a, b: function(tensor(a), tensor(b))


def tensor(value: Any) -> Any:
    """A constant as an operand of tensors: a number where it is one, so that nothing is kept for it."""
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype == object:  # arithmetic on shapes
        return torch.tensor(value.tolist()) if value.ndim else value.item()
    return value.item() if value.size == 1 and value.ndim == 0 else torch.from_numpy(np.ascontiguousarray(value))


def _many(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def run(node: Node, first: Any, *rest: Any) -> Tensor:
        total = tensor(first)
        for other in rest:
            total = function(total, tensor(other))
        return total

    return run


def _clip(node: Node, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    low, high = (_number(v, node, name) for v, name in ((low, "min"), (high, "max")))
    if (low, high) == (0.0, 6.0):
        return F.relu6(x)
    if low == 0 and high is None:
        return F.relu(x)
    return torch.clamp(x, low, high)


def _number(value: Any, node: Node, name: str) -> float | None:
    """A limit: an input since opset 11, an attribute before; the largest float is none."""
    if value is None:
        value = node.attributes.get(name)
    if value is None:
        return None
    number = float(value)
    return None if abs(number) > 3e38 else number


def _where(node: Node, condition: Any, a: Any, b: Any) -> Tensor:
    return torch.where(torch.as_tensor(tensor(condition)), tensor(a), tensor(b))


def _modulo(node: Node, a: Any, b: Any) -> Tensor:
    return (torch.fmod if node.attributes.get("fmod") else torch.remainder)(tensor(a), tensor(b))


def _prelu(node: Node, x: Tensor, slope: Tensor) -> Tensor:
    if slope.dim() and slope.numel() == x.shape[1] and slope.numel() == slope.shape[0]:
        return F.prelu(x, slope.reshape(-1))
    return F.relu(x) - slope * F.relu(-x) if slope.numel() > 1 else F.prelu(x, slope.reshape(1))


def _hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    alpha, beta = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-4 and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def _gelu(node: Node, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=node.attributes.get("approximate", "none"))


def _cast(node: Node, x: Tensor) -> Tensor:
    if node.attributes["to"] in (1, 10, 11, 16):  # floats of any width are computed in float32
        return x if x.is_floating_point() else x.float()
    return x.to({6: torch.int32, 7: torch.int64, 9: torch.bool, 3: torch.int8, 2: torch.uint8}[node.attributes["to"]])


# ---- moves


def _reshape(node: Node, x: Tensor, shape: Any = None) -> Tensor:
    wanted = ints(node.attributes["shape"] if shape is None else shape)
    sides = [x.shape[i] if s == 0 and not node.attributes.get("allowzero") else s for i, s in enumerate(wanted)]
    is_written = shape is None or shape.dtype != object  # and not computed from the batch that there is
    if is_written and wanted[0] == 1 and x.shape[0] != 1:  # written for a batch of one
        sides[0] = x.shape[0]
    if wanted[0] == -1 and all(isinstance(s, int) and s > 0 for s in sides[1:]) and sides[1:]:
        sides[0] = x.shape[0] if math.prod(x.shape[1:]) == math.prod(sides[1:]) else -1
    return x.reshape(sides)


def _flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.attributes.get("axis", 1)
    if axis % x.dim() == 1:
        return torch.flatten(x, 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _transpose(node: Node, x: Tensor) -> Tensor:
    return x.permute(*node.attributes.get("perm", range(x.dim() - 1, -1, -1)))


def _squeeze(node: Node, x: Tensor, axes: Any = None) -> Tensor:
    given = axes_of(node, axes)
    return torch.squeeze(x, given) if given else torch.squeeze(x)


def _unsqueeze(node: Node, x: Tensor, axes: Any = None) -> Tensor:
    for axis in sorted(axes_of(node, axes)):
        x = torch.unsqueeze(x, axis)
    return x


def _slice(node: Node, x: Tensor, *rest: Any) -> Tensor:
    starts, ends, axes, steps = slice_arguments(node, rest)
    axes, steps = axes or range(len(starts)), steps or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0:  # as channels are turned from BGR to RGB
            backwards = range(*slice(start, end, step).indices(x.shape[axis]))
            x = torch.index_select(x, axis, torch.tensor(backwards))
        else:
            places: list[Any] = [slice(None)] * x.dim()
            places[axis % x.dim()] = slice(start, None if isinstance(end, int) and end > 2**31 - 2 else end, step)
            x = x[tuple(places)]
    return x


def _gather(node: Node, x: Tensor, indices: Any) -> Tensor:
    axis = node.attributes.get("axis", 0)
    if isinstance(indices, np.ndarray) and indices.ndim == 0:
        return x.select(axis, int(indices))
    return torch.index_select(x, axis, tensor(indices).long().reshape(-1)).unflatten(axis, list(indices.shape))


def _concat(node: Node, *parts: Any) -> Tensor:
    """Parts that hold nothing are left out: there is nothing in them to be quantized."""
    axis, known = node.attributes["axis"], [tensor(part) for part in parts]
    full = [part for part in known if not (isinstance(part.shape[axis], int) and part.shape[axis] == 0)]
    return torch.cat(full or known, axis) if len(full) != 1 else full[0]


def _split(node: Node, x: Tensor, sizes: Any = None) -> Sequence[Tensor]:
    axis = node.attributes.get("axis", 0)
    given = node.attributes.get("split") if sizes is None else ints(sizes)
    return torch.split(x, list(given), axis) if given else torch.chunk(x, len(node.outputs), axis)


def _pad(node: Node, x: Tensor, pads: Any = None, value: Any = None, axes: Any = None) -> Tensor:
    given = ints(node.attributes["pads"] if pads is None else pads)
    if axes is not None:
        raise refuse(node, "padding of some axes")
    mode, rank = node.attributes.get("mode", "constant"), len(given) // 2
    around = _around(given[:rank], given[rank:])
    while len(around) > 2 and not any(around[-2:]):
        around = around[:-2]
    if mode == "constant":
        number = node.attributes.get("value", 0.0) if value is None else float(np.asarray(value).item())
        return F.pad(x, around, value=number)
    return F.pad(x, around, mode={"reflect": "reflect", "edge": "replicate", "wrap": "circular"}[mode])


def _expand(node: Node, x: Tensor, shape: Any) -> Tensor:
    return torch.broadcast_to(x, torch.broadcast_shapes(x.shape, ints(shape)))


def _tile(node: Node, x: Tensor, times: Any) -> Tensor:
    return x.repeat(*ints(times))


def _einsum(node: Node, *parts: Tensor) -> Tensor:
    return torch.einsum(node.attributes["equation"], *parts)


def _gather_elements(node: Node, x: Tensor, indices: Any) -> Tensor:
    return torch.gather(x, node.attributes.get("axis", 0), tensor(indices))


def _lrn(node: Node, x: Tensor) -> Tensor:
    known = node.attributes
    return F.local_response_norm(
        x, known["size"], known.get("alpha", 1e-4), known.get("beta", 0.75), known.get("bias", 1.0)
    )


def _depth_to_space(node: Node, x: Tensor) -> Tensor:
    size = node.attributes["blocksize"]
    if node.attributes.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, size)
    n, c, h, w = x.shape
    apart = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return apart.reshape(n, c // size**2, h * size, w * size)


def _space_to_depth(node: Node, x: Tensor) -> Tensor:
    size = node.attributes["blocksize"]
    n, c, h, w = x.shape
    apart = x.reshape(n, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4)
    return apart.reshape(n, c * size**2, h // size, w // size)


def _shape(node: Node, x: Tensor) -> np.ndarray:
    start, end = node.attributes.get("start", 0), node.attributes.get("end")
    return np.array(list(x.shape)[start:end], dtype=object)


OPERATORS: dict[str, Callable[..., Any]] = {
    "Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm, "MatMul": _matmul,
    "BatchNormalization": _batch_norm, "InstanceNormalization": _instance_norm, "LayerNormalization": _layer_norm,
    "MaxPool": _max_pool, "AveragePool": _average_pool, "GlobalAveragePool": _global(torch.mean),
    "GlobalMaxPool": _global(torch.amax), "ReduceMean": _reduce(torch.mean), "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax), "ReduceMin": _reduce(torch.amin),
    "ReduceL2": _reduce(torch.linalg.vector_norm),
    "ReduceL1": _reduce(lambda x, dim, keepdim: x.abs().sum(dim, keepdim)),
    "ReduceSumSquare": _reduce(lambda x, dim, keepdim: x.square().sum(dim, keepdim)),
    "ReduceLogSumExp": _reduce(torch.logsumexp),
    "Softmax": _softmax(torch.softmax), "LogSoftmax": _softmax(torch.log_softmax), "LRN": _lrn,
    "LSTM": lstm, "GRU": gru, "Einsum": _einsum,
    "Relu": _unary(F.relu), "Sigmoid": _unary(torch.sigmoid), "Tanh": _unary(torch.tanh),
    "HardSwish": _unary(F.hardswish), "Mish": _unary(F.mish), "Softplus": _unary(F.softplus), "Exp": _unary(torch.exp),
    "Log": _unary(torch.log), "Sqrt": _unary(torch.sqrt), "Abs": _unary(torch.abs), "Neg": _unary(torch.neg),
    "Reciprocal": _unary(torch.reciprocal), "Erf": _unary(torch.erf), "Floor": _unary(torch.floor),
    "Ceil": _unary(torch.ceil), "Round": _unary(torch.round), "Sign": _unary(torch.sign), "Sin": _unary(torch.sin),
    "Cos": _unary(torch.cos), "Softsign": _unary(F.softsign), "Not": _unary(torch.logical_not),
    "Equal": _binary(torch.eq), "Greater": _binary(torch.gt), "GreaterOrEqual": _binary(torch.ge),
    "Less": _binary(torch.lt), "LessOrEqual": _binary(torch.le), "And": _binary(torch.logical_and),
    "Or": _binary(torch.logical_or), "Where": _where, "Mod": _modulo,
    "Identity": _unary(lambda x: x), "Dropout": lambda node, x, *rest: x,
    "LeakyRelu": lambda node, x: F.leaky_relu(x, node.attributes.get("alpha", 0.01)),
    "Elu": lambda node, x: F.elu(x, node.attributes.get("alpha", 1.0)), "Selu": _unary(F.selu),
    "Celu": lambda node, x: F.celu(x, node.attributes.get("alpha", 1.0)), "PRelu": _prelu, "Clip": _clip,
    "HardSigmoid": _hard_sigmoid, "Gelu": _gelu, "Cast": _cast,
    "Add": _binary(torch.add), "Sub": _binary(torch.sub), "Mul": _binary(torch.mul), "Div": _binary(torch.div),
    "Pow": _binary(torch.pow), "Min": _many(torch.minimum), "Max": _many(torch.maximum), "Sum": _many(torch.add),
    "Concat": _concat, "Split": _split, "Reshape": _reshape,
    "Flatten": _flatten, "Transpose": _transpose, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Slice": _slice,
    "Gather": _gather, "Pad": _pad, "Expand": _expand, "Resize": resize, "Upsample": resize,
    "DepthToSpace": _depth_to_space, "SpaceToDepth": _space_to_depth, "Shape": _shape,
    "Size": lambda node, x: np.array(math.prod(x.shape), dtype=object), "Tile": _tile,
    "GatherElements": _gather_elements,
}  # fmt: skip
