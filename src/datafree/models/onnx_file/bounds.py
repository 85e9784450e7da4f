"""How much an ONNX file may ask for: constants that it computes, and values of its network when it is read."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from datafree.execution import most_bytes
from datafree.models.state_dict import ModelError

MOST_VALUES = 2**26  # of one tensor, where the file alone says how large images are: 256 MiB of float32
MOST_WHERE_ASKED = 2**29  # where the user says it


def check_constant(proto: Any, opset: int, given: Mapping[str, np.ndarray], name: str) -> None:
    """Refuse a node of constants whose results are larger than a file may make them, before they are computed.

    Raises:
        ModelError: ONNX's shape inference says so.
    """
    onnx = importlib.import_module("onnx")
    helper, most = onnx.helper, most_bytes(sum(value.nbytes for value in given.values()))
    kind = lambda value: helper.np_dtype_to_tensor_dtype(value.dtype)  # noqa: E731
    inputs = [helper.make_tensor_value_info(n, kind(value), value.shape) for n, value in given.items()]
    known = [onnx.numpy_helper.from_array(value, n) for n, value in given.items() if value.size < 1024]
    outputs = [helper.make_empty_tensor_value_info(n) for n in proto.output]
    graph = helper.make_graph([proto], "node", inputs, outputs, initializer=known)
    alone = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        found = onnx.shape_inference.infer_shapes(alone, data_prop=True).graph.output
    except Exception:  # of onnx, where a node makes no sense: computing it says so
        return
    for value in found:
        count = math.prod(side.dim_value for side in value.type.tensor_type.shape.dim)
        if 8 * count > most:
            raise ModelError(
                f"{name} of constants makes {count} values, and {most // 8} are allowed for what it is made of; export "
                "the network without it"
            )


@contextmanager
def at_most(num_values: int) -> Iterator[None]:
    """Inside, no operator of PyTorch makes a tensor of more values: it is refused before it has its memory.

    Raises:
        ModelError: an operator would; names it, and the size.
    """
    with _Bounded(num_values):
        yield


class _Bounded(TorchDispatchMode):
    def __init__(self, num_values: int) -> None:
        super().__init__()
        self.num_values = num_values

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        largest = 0 if func.is_view else _largest(func, args, kwargs or {})
        if largest > self.num_values:
            raise ModelError(
                f"{func} makes a value of {largest} numbers, and {self.num_values} are allowed; if that is meant, say "
                "at which size the network runs (--input, input_shape), or at a smaller one"
            )
        return func(*args, **kwargs or {})


def _largest(func: Any, args: Any, kwargs: Any) -> int:
    """Values of an operator's largest result, by its shapes alone; 0 where that cannot be told."""
    to_meta = lambda x: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")  # noqa: E731
    as_shapes = lambda x: to_meta(x) if isinstance(x, torch.Tensor) else "meta" if isinstance(x, torch.device) else x  # noqa: E731
    args, kwargs = tree_map(as_shapes, args), tree_map(as_shapes, kwargs)
    if any(argument.name == "device" for argument in func._schema.arguments):
        kwargs = {**kwargs, "device": "meta"}
    try:
        found = tree_leaves(func(*args, **kwargs))
    except Exception:  # it has no way to run on shapes, or makes no sense: running it says so
        return 0
    return max((x.numel() for x in found if isinstance(x, torch.Tensor)), default=0)
