"""Arithmetic on shapes: integers that may be symbols, in arrays of objects. All else is tensors."""

from __future__ import annotations

import functools
import importlib
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from datafree.models.onnx_file.records import Node
from datafree.models.state_dict import ModelError

MOST = 2**20  # numbers in one array
Shape = np.ndarray
"""Integers or symbolic integers (dtype object), as `Shape` yields them."""


def _gather(node: Node, data: Shape, indices: Shape) -> Shape:
    return _objects(np.take(data, np.asarray(indices, dtype=np.int64), axis=node.attributes.get("axis", 0)))


def _concat(node: Node, *parts: Shape) -> Shape:
    return np.concatenate([np.atleast_1d(_objects(part)) for part in parts], axis=node.attributes.get("axis", 0))


def _slice(node: Node, data: Shape, *rest: Any) -> Shape:
    starts, ends, axes, steps = slice_arguments(node, rest)
    places = [slice(None)] * data.ndim
    for start, end, axis, step in zip(
        starts, ends, axes or range(len(starts)), steps or [1] * len(starts), strict=True
    ):
        places[axis] = slice(start, end, step)
    return data[tuple(places)]


def slice_arguments(node: Node, rest: tuple[Any, ...]) -> list[Any]:
    """Starts, ends, axes and steps of a Slice: inputs since opset 10, attributes before."""
    if rest:
        return [*(None if value is None else ints(value) for value in rest), None, None][:4]
    return [*(node.attributes.get(name) for name in ("starts", "ends", "axes")), None]


def _unsqueeze(node: Node, data: Shape, axes: Shape | None = None) -> Shape:
    return np.expand_dims(data, tuple(axes_of(node, axes)))


def _squeeze(node: Node, data: Shape, axes: Shape | None = None) -> Shape:
    given = axes_of(node, axes)
    return np.squeeze(data, tuple(given) if given else None)


def axes_of(node: Node, axes: Any) -> list[int]:
    """Axes: an input since opset 13, an attribute before; [] where none are given."""
    return list(node.attributes.get("axes", [])) if axes is None else ints(axes)


def _cast(node: Node, data: Shape) -> Shape:
    """Numbers as numbers of that kind; symbols stay what they are."""
    kind = {1: float, 6: int, 7: int, 9: bool, 10: float, 11: float, 16: float}.get(node.attributes["to"], int)
    return _each(lambda x: kind(x) if isinstance(x, int | float) else x)(node, data)


def _divide(node: Node, a: Shape, b: Shape) -> Shape:
    whole = not any(isinstance(x, float) for x in [*_objects(a).flat, *_objects(b).flat])
    return _elementwise(np.floor_divide if whole else np.true_divide)(node, a, b)


def _elementwise(function: Callable[[Any, Any], Any]) -> Callable[..., Shape]:
    return lambda node, a, b: np.asarray(function(_objects(a), _objects(b)), dtype=object)


def _each(function: Callable[[Any], Any]) -> Callable[..., Shape]:
    return lambda node, data: _objects([function(x) for x in _objects(data).flat]).reshape(np.shape(data))


def _many(function: Callable[[Any, Any], Any]) -> Callable[..., Shape]:
    pair = np.frompyfunc(lambda a, b: function(a, b), 2, 1)
    return lambda node, *parts: np.asarray(functools.reduce(pair, map(_objects, parts)), dtype=object)


def _reshape(node: Node, data: Shape, shape: Shape) -> Shape:
    return data.reshape(ints(shape))


def _constant_of_shape(node: Node, shape: Shape) -> Any:
    """Zeros of a shape with a symbol in it are a tensor."""
    value = node.attributes.get("value")
    filling = np.zeros(1, np.float32) if value is None else np.asarray(_numpy(value))
    sides = ints(shape)
    number = filling.reshape(-1)[0].item()
    if isinstance(number, float):
        return torch.full(sides, number)
    if all(isinstance(side, int) for side in sides):
        _check_count(node, math.prod(sides))
        return np.full(sides, number, dtype=object)
    return torch.full(sides, number)


def _numpy(value: Any) -> np.ndarray:
    return importlib.import_module("onnx.numpy_helper").to_array(value)


def _reduced(function: Callable[[Any, Any], Any]) -> Callable[..., Shape]:
    def run(node: Node, data: Shape, axes: Any = None) -> Shape:
        dims = tuple(axes_of(node, axes)) or tuple(range(np.ndim(data)))
        found = _objects(data)
        for dim in sorted((d % found.ndim for d in dims), reverse=True):
            found = np.frompyfunc(lambda a, b: function(a, b), 2, 1).reduce(found, axis=dim, keepdims=True)
        return found if node.attributes.get("keepdims", 1) else np.asarray(np.squeeze(found, dims), dtype=object)

    return run


def _where(node: Node, condition: Shape, a: Shape, b: Shape) -> Shape:
    choose = np.frompyfunc(lambda c, x, y: x if c else y, 3, 1)
    return np.asarray(choose(_objects(condition), _objects(a), _objects(b)), dtype=object)


def _expand(node: Node, data: Shape, shape: Shape) -> Any:
    """Numbers along a batch of any size are a tensor."""
    sides = ints(shape)
    if all(isinstance(side, int) for side in sides):
        _check_count(node, data.size * math.prod(sides))
        return np.broadcast_to(_objects(data), np.broadcast_shapes(data.shape, sides))
    tensor = torch.tensor(data.tolist())
    return tensor.broadcast_to(torch.broadcast_shapes(tensor.shape, sides))


def _range(node: Node, start: Shape, limit: Shape, delta: Shape) -> Shape:
    first, end, step = (_objects(value).item() for value in (start, limit, delta))
    if not all(isinstance(value, int | float) for value in (first, end, step)):
        raise ModelError(f"{node}: a range over the batch is not read; export the network without it")
    _check_count(node, abs((end - first) / step) if step else math.inf)
    return _objects(np.arange(first, end, step))


def _tile(node: Node, data: Shape, times: Shape) -> Shape:
    if all(isinstance(count, int) for count in ints(times)):
        _check_count(node, np.size(data) * math.prod(ints(times)))
    return np.tile(_objects(data), ints(times))


def _power(node: Node, a: Shape, b: Shape) -> Shape:
    if any(isinstance(x, int) and x > 64 for x in _objects(b).flat):
        raise ModelError(f"{node} raises a size to more than the 64th power; export the network without it")
    return np.asarray(np.power(_objects(a), _objects(b)), dtype=object)


def _check_count(node: Node, count: int | float) -> None:
    if not 0 <= count <= MOST:
        raise ModelError(f"{node} makes {count:g} numbers of a shape, and {MOST} are allowed; export it without that")


def checked(node: Node, value: Any) -> Any:
    """Arithmetic on shapes that came to no size a tensor has; what are tensors, or symbols, goes through.

    Raises:
        ModelError: too many numbers, or too large ones.
    """
    if isinstance(value, np.ndarray):
        _check_count(node, value.size)
        if any(isinstance(x, int) and not -(2**63) <= x < 2**63 for x in value.flat):
            raise ModelError(f"{node} comes to a size that no tensor has; export the network without it")
    return value


def _clip(node: Node, data: Shape, low: Any = None, high: Any = None) -> Shape:
    """Sides as TensorFlow's "same" padding asks for, none below 0."""
    ends = [node.attributes.get(name) if v is None else v for name, v in (("min", low), ("max", high))]
    bounds = [default if v is None else np.ravel(v)[0] for v, default in zip(ends, (-np.inf, np.inf), strict=True)]
    return np.array([min(max(x, bounds[0]), bounds[1]) for x in data.flat], dtype=object).reshape(data.shape)


SHAPE_OPERATORS: dict[str, Callable[..., Shape]] = {
    "Gather": _gather,
    "Concat": _concat,
    "Slice": _slice,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Cast": _cast,
    "Identity": lambda node, data: data,
    "Floor": _each(lambda x: int(x // 1)),
    "Ceil": _each(lambda x: int(-(-x // 1))),
    "Neg": _each(lambda x: -x),
    "Clip": _clip,
    "Not": _each(lambda x: not x),
    "Sqrt": _each(lambda x: x**0.5),
    "Shape": lambda node, data: _objects(np.shape(data))[node.attributes.get("start", 0) : node.attributes.get("end")],
    "Size": lambda node, data: _objects(np.size(data)),
    "Add": _elementwise(np.add),
    "Sub": _elementwise(np.subtract),
    "Mul": _elementwise(np.multiply),
    "Div": _divide,
    "Reshape": _reshape,
    "ConstantOfShape": _constant_of_shape,
    "Mod": _elementwise(np.mod),
    "Pow": _power,
    "Equal": _elementwise(np.equal),
    "Greater": _elementwise(np.greater),
    "Less": _elementwise(np.less),
    "Min": _many(lambda a, b: a if a <= b else b),
    "Max": _many(lambda a, b: a if a >= b else b),
    "ReduceProd": _reduced(operator.mul),
    "ReduceSum": _reduced(operator.add),
    "Where": _where,
    "Range": _range,
    "Expand": _expand,
    "Transpose": lambda node, data: np.transpose(_objects(data), node.attributes.get("perm")),
    "Tile": _tile,
}


def shape_values(nodes: Sequence[Node], constants: dict[str, np.ndarray]) -> set[str]:
    """Names of values that are arithmetic on shapes, and no tensors."""
    found: set[str] = set()
    for node in nodes:
        given = [name for name in node.inputs if name]
        is_arithmetic = node.operator in SHAPE_OPERATORS and all(name in found or name in constants for name in given)
        if node.operator in ("Shape", "Size") or (is_arithmetic and node.operator != "ConstantOfShape"):
            found |= {*node.outputs}
    return found


def _objects(value: Any) -> Shape:
    return np.asarray(
        value.tolist() if isinstance(value, np.ndarray) and value.dtype != object else value, dtype=object
    )


def ints(value: Any) -> list[Any]:
    """A shape as a list of integers and symbols."""
    return [int(x) if isinstance(x, np.integer | float) else x for x in np.atleast_1d(value).tolist()]
