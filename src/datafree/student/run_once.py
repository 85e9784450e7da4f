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
    """Run the student on the first images of the signal; the teacher too, where values of it are not finite.

    Layers are looked at one by one: rounding makes an integer of NaN, which the answers then no longer show.

    Args:
        inputs: of the network, a tensor (N, ...) each; two images are used.

    Raises:
        LayerError: a layer, or the answer, is NaN or infinite in the student and not in the teacher; names the first.
    """
    few = [x[:NUM_IMAGES] for x in inputs]
    lost = _not_finite(student, few)
    if lost:
        lost = [name for name in lost if name not in _not_finite(teacher, few)]
    if lost:
        raise LayerError(
            f"{lost[0]}: the student's values are not finite from here on, and the float network's are; keep that "
            f"layer in float (layers.{lost[0]}=keep) or give it more bits, and please report the network"
        )


def _not_finite(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> list[str]:
    """Layers that put out NaN or infinity, in order; "output" where an answer does."""
    with torch.no_grad():
        watched = _Watched(graph)
        watched.run(*inputs, enable_io_processing=False)
    return watched.lost


class _Watched(fx.Interpreter):
    """Remembers where there was NaN or infinity; what is between layers may use it, as masks do."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.lost: list[str] = []

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        name = n.op if n.op == "output" else g.note(n).layer
        if name and not _is_finite(value):
            self.lost.append(name)
        return value


def _is_finite(values: Any) -> bool:
    tensors = [x for x in tree_leaves(values) if isinstance(x, Tensor) and x.is_floating_point()]
    return all(bool(torch.isfinite(x).all()) for x in tensors)
