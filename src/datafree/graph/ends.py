"""Networks that hand back another type than float32: they compute in float32, and convert at their ends."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from datafree.graph.view import duplicate

ENDS = "dtype of its ends"  # in a graph module's meta, which copies have, too


class ConvertingGraph(fx.GraphModule):
    """A network called with floating inputs of any type, handing back floating outputs of the type in its meta.

    Its nodes compute in float32: only a call of the module converts, a walk of its graph does not.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = pytree.tree_map(partial(_converted, torch.float32), (args, kwargs))
        return pytree.tree_map(partial(_converted, end_dtype(self)), super().__call__(*args, **kwargs))


def end_dtype(graph: fx.GraphModule) -> torch.dtype:
    """The type of what a network hands back where that is floating."""
    return graph.meta.get(ENDS, torch.float32)


def with_ends(graph: fx.GraphModule, dtype: torch.dtype) -> fx.GraphModule:
    """The same network, handing back floating outputs of `dtype`; its nodes stay as they are."""
    if dtype == end_dtype(graph):
        return graph
    new = duplicate(graph)
    if dtype != torch.float32:
        new = ConvertingGraph(new, new.graph).eval()
        new.meta[ENDS] = dtype
    return new


def _converted(dtype: torch.dtype, x: Any) -> Any:
    return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
