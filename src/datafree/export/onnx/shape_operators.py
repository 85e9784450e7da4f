"""What only moves values: ATen operators that reshape, cut and join, and the ONNX nodes that mean the same."""

from __future__ import annotations

import math
from collections.abc import Callable

from datafree.export.onnx.writer import Call, Size
from datafree.graph import aten

END = 2**63 - 1  # "to the end" of a slice


def _same(call: Call, x: str, *rest: object) -> str:
    return x


def _view(call: Call, x: str, sizes: list[int | Size]) -> str:
    """Sizes as ONNX has them: one may be -1; the batch takes it, and the others are known from capture."""
    known = call.shape if Size.OPEN in sizes else [-1] * len(sizes)
    wanted = [-1 if isinstance(s, Size) else k if s == -1 else s for s, k in zip(sizes, known, strict=True)]
    if wanted.count(-1) > 1:
        call.refuse("more than one size depends on the batch")
    return call.emit("Reshape", x, call.ints(wanted))


def _flatten(call: Call, x: str, start: int, end: int) -> str:
    rank = len(call.input_shape)
    start, end = start % rank, end % rank
    return call.emit("Reshape", x, call.ints([*[0] * start, -1, *call.input_shape[end + 1 :]]))


def _unflatten(call: Call, x: str, dim: int, sizes: list[int]) -> str:
    dim %= len(call.input_shape)
    rest = call.input_shape[dim + 1 :]
    return call.emit("Reshape", x, call.ints([*[0] * dim, *call.shape[dim : len(call.shape) - len(rest)], *rest]))


def _transpose(call: Call, x: str, first: int, second: int) -> str:
    order = list(range(len(call.shape)))
    order[first], order[second] = order[second], order[first]
    return call.emit("Transpose", x, perm=order)


def _permute(call: Call, x: str, dims: list[int]) -> str:
    return call.emit("Transpose", x, perm=[d % len(dims) for d in dims])


def _squeeze(call: Call, x: str, dims: int | list[int]) -> str:
    wanted = [dims] if isinstance(dims, int) else dims
    axes = [d for d in wanted if call.input_shape[d] == 1]
    return call.emit("Squeeze", x, call.ints(axes)) if axes else x


def _expand(call: Call, x: str, sizes: list[int | Size], implicit: bool) -> str:
    """A size of 1 leaves the tensor's own, so the batch is never named."""
    given = [1] * (len(sizes) - len(call.input_shape)) + list(call.input_shape)
    if any(s is Size.OPEN and have == 1 for s, have in zip(sizes, given, strict=True)):
        call.refuse("it repeats a tensor along the batch")
    wanted = [1 if s is Size.OPEN or s == -1 else s for s in sizes]
    return call.emit("Expand", x, call.ints(wanted))


def _expand_as(call: Call, x: str, other: str) -> str:
    return call.emit("Expand", x, call.emit("Shape", other, step="shape"))


def _slice(call: Call, x: str, dim: int, start: int | None, end: int | None, step: int) -> str:
    bounds = (call.ints([start or 0]), call.ints([END if end is None else end]))
    return call.emit("Slice", x, *bounds, call.ints([dim]), call.ints([step]))


def _narrow(call: Call, x: str, dim: int, start: int, length: int) -> str:
    return _slice(call, x, dim, start, start + length, 1)


def _roll(call: Call, x: str, shifts: list[int], dims: list[int]) -> str:
    """Each dimension as its end before its beginning."""
    if not dims:
        call.refuse("it rolls the flattened tensor")
    for number, (shift, dim) in enumerate(zip(shifts, dims, strict=True)):
        size, axes = call.shape[dim], call.ints([dim])
        cut = call.ints([-shift % size])
        end = call.emit("Slice", x, cut, call.ints([END]), axes, step=f"end_{number}")
        start = call.emit("Slice", x, call.ints([0]), cut, axes, step=f"start_{number}")
        x = call.emit("Concat", end, start, axis=dim, step="" if number == len(dims) - 1 else f"rolled_{number}")
    return x


def _unbind(call: Call, x: str, dim: int) -> list[str]:
    return [_select(call, x, dim, i, step=str(i)) for i in range(call.input_shape[dim])]


def _select(call: Call, x: str, dim: int, index: int, step: str = "") -> str:
    return call.emit("Gather", x, call.ints(index), step=step, axis=dim)


def _flip(call: Call, x: str, dims: list[int]) -> str:
    count = len(dims)
    bounds = (call.ints([-1] * count), call.ints([-END] * count))
    return call.emit("Slice", x, *bounds, call.ints(list(dims)), call.ints([-1] * count))


def _split(call: Call, x: str, size: int | list[int], dim: int) -> list[str]:
    total = call.input_shape[dim]
    if isinstance(size, int):
        size = [min(size, total - start) for start in range(0, total, size)]
    return call.writer.emit("Split", [x, call.ints(list(size))], call.name, {"axis": dim}, len(size))


def _chunk(call: Call, x: str, chunks: int, dim: int) -> list[str]:
    return _split(call, x, math.ceil(call.input_shape[dim] / chunks), dim)


def _stack(call: Call, tensors: list[str], dim: int) -> str:
    axis = dim % len(call.shape)
    rows = [call.emit("Unsqueeze", x, call.ints([axis]), step=f"part_{i}") for i, x in enumerate(tensors)]
    return call.emit("Concat", *rows, axis=axis)


def _pad(call: Call, x: str, pads: list[int], mode: str, value: int | float | None) -> str:
    kinds = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    if mode == "circular":
        call.since(19, "Pad with mode 'wrap'")
    filled = call.floats(value or 0.0) if mode == "constant" else None
    return call.emit("Pad", x, pad_sizes(call, pads), filled, mode=kinds[mode])


def pad_sizes(call: Call, pads: list[int]) -> str:
    """ATen names pairs from the last dimension back, ONNX all beginnings and then all ends."""
    free = [0] * (len(call.shape) - len(pads) // 2)
    return call.ints([*free, *reversed(pads[::2]), *free, *reversed(pads[1::2])])


def _shuffle(call: Call, x: str, groups: int) -> str:
    _, channels, height, width = call.shape
    rows = call.emit("Reshape", x, call.ints([0, groups, channels // groups, height, width]), step="groups")
    rows = call.emit("Transpose", rows, perm=[0, 2, 1, 3, 4], step="swapped")
    return call.emit("Reshape", rows, call.ints([0, channels, height, width]))


MOVES: dict[object, Callable[..., str | list[str]]] = {
    aten.contiguous.default: _same,
    aten.clone.default: _same,
    aten.view.default: _view,
    aten.reshape.default: _view,
    aten._unsafe_view.default: _view,
    aten.flatten.using_ints: _flatten,
    aten.unflatten.int: _unflatten,
    aten.transpose.int: _transpose,
    aten.permute.default: _permute,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.unsqueeze.default: lambda call, x, dim: call.emit("Unsqueeze", x, call.ints([dim])),
    aten.expand.default: _expand,
    aten.expand_as.default: _expand_as,
    aten.slice.Tensor: _slice,
    aten.narrow.default: _narrow,
    aten.select.int: _select,
    aten.unbind.int: _unbind,
    aten.roll.default: _roll,
    aten.flip.default: _flip,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.chunk.default: _chunk,
    aten.cat.default: lambda call, tensors, dim: call.emit("Concat", *tensors, axis=dim),
    aten.stack.default: _stack,
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: lambda call, x, pads, value: _pad(call, x, pads, "constant", value),
    aten.pixel_shuffle.default: lambda call, x, factor: call.emit("DepthToSpace", x, blocksize=factor, mode="CRD"),
    aten.channel_shuffle.default: _shuffle,
}
