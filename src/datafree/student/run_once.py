"""The student is run once before it is handed over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from datafree import graph as g
from datafree.solve import LayerError

NUM_IMAGES = 2


def check_runs(student: fx.GraphModule, teacher: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
    """Run the student on the first images of the signal; the teacher too, where its answers are not finite.

    Args:
        inputs: of the network, a tensor (N, ...) each; two images are used.

    Raises:
        LayerError: the student's answers are NaN or infinite where the teacher's are not; names the first layer.
    """
    few = [x[:NUM_IMAGES] for x in inputs]
    with torch.no_grad():
        watched = _Watched(student)
        own = watched.run(*few, enable_io_processing=False)
        if _is_finite(own) or not _is_finite(fx.Interpreter(teacher).run(*few, enable_io_processing=False)):
            return
    raise LayerError(
        f"{watched.first}: the student's values are not finite from here on, and the float network's are; keep that "
        f"layer in float (layers.{watched.first}=keep) or give it more bits, and please report the network"
    )


class _Watched(fx.Interpreter):
    """Remembers the first layer, or other operator where there is none, that gave NaN or infinity."""

    def __init__(self, student: fx.GraphModule) -> None:
        super().__init__(student)
        self.first = ""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if not self.first and n.op == "call_function" and not _is_finite(value):
            self.first = g.note(n).layer or n.name
        return value


def _is_finite(values: Any) -> bool:
    tensors = [x for x in tree_leaves(values) if isinstance(x, Tensor) and x.is_floating_point()]
    return all(bool(torch.isfinite(x).all()) for x in tensors)
