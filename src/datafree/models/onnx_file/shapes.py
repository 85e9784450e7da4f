"""Arithmetic on shapes: integers that may be symbols, in arrays of objects. All else is tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from datafree.models.onnx_file.graph import Node

Shape = np.ndarray
"""Integers or symbolic integers (dtype object), as `Shape` yields them."""


def _gather(node: Node, data: Shape, indices: Shape) -> Shape:
    return _objects(np.take(data, np.asarray(indices, dtype=np.int64), axis=node.attributes.get("axis", 0)))


def _concat(node: Node, *parts: Shape) -> Shape:
    return np.concatenate([np.atleast_1d(_objects(part)) for part in parts])


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
    return data


def _divide(node: Node, a: Shape, b: Shape) -> Shape:
    whole = not any(isinstance(x, float) for x in [*_objects(a).flat, *_objects(b).flat])
    return _objects(a) // _objects(b) if whole else _objects(a) / _objects(b)


def _elementwise(function: Callable[[Any, Any], Any]) -> Callable[..., Shape]:
    return lambda node, a, b: np.asarray(function(_objects(a), _objects(b)), dtype=object)


def _reshape(node: Node, data: Shape, shape: Shape) -> Shape:
    return data.reshape(ints(shape))


def _constant_of_shape(node: Node, shape: Shape) -> Shape:
    value = node.attributes.get("value")
    filling = (
        0 if value is None else value.int64_data[0] if value.int64_data else np.frombuffer(value.raw_data, "<i8")[0]
    )
    return np.full(ints(shape), int(filling), dtype=object)


def _product(node: Node, data: Shape, axes: Any = None) -> Shape:
    kept = node.attributes.get("keepdims", 1)
    total = np.asarray(np.prod(_objects(data)), dtype=object)
    return total.reshape(1) if kept else total


SHAPE_OPERATORS: dict[str, Callable[..., Shape]] = {
    "Gather": _gather,
    "Concat": _concat,
    "Slice": _slice,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Cast": _cast,
    "Identity": _cast,
    "Floor": lambda node, data: np.array([int(x // 1) for x in data.flat], dtype=object).reshape(data.shape),
    "Add": _elementwise(np.add),
    "Sub": _elementwise(np.subtract),
    "Mul": _elementwise(np.multiply),
    "Div": _divide,
    "Reshape": _reshape,
    "ConstantOfShape": _constant_of_shape,
    "ReduceProd": _product,
}


def _objects(value: Any) -> Shape:
    return np.asarray(
        value.tolist() if isinstance(value, np.ndarray) and value.dtype != object else value, dtype=object
    )


def ints(value: Any) -> list[Any]:
    """A shape as a list of integers and symbols."""
    return [int(x) if isinstance(x, np.integer | float) else x for x in np.atleast_1d(value).tolist()]
