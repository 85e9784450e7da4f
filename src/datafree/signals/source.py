"""Where every layer's inputs come from: one walk through the teacher that yields true-to-life values at every node."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx

from datafree import graph as g
from datafree.records import ChannelStats, Stats
from datafree.signals.gaussian import draw


@dataclass(frozen=True)
class Source:
    """A signal ready to flow.

    inputs: one tensor (N, ...) for each input of the graph.
    stats: BatchNorm statistics by node name.
    at_batchnorm: what happens where statistics are known: "keep" the value, "restandardise" it to them (ours), or
        "draw" it from them without running what comes before (paper, eq. 2-3).
    reach: for each input made here, the smallest and largest value a real one may have; None = as in `inputs`.
    """

    kind: str
    inputs: tuple[Tensor, ...]
    stats: Stats = field(default_factory=dict)
    at_batchnorm: str = "keep"
    seed: int = 0
    reach: tuple[tuple[float, float], ...] | None = None

    @property
    def draws(self) -> bool:
        return self.at_batchnorm == "draw"

    @property
    def num_images(self) -> int:
        return len(self.inputs[0])


def flow(teacher: fx.GraphModule, source: Source) -> Iterator[tuple[fx.Node, object]]:
    """Yield every node with its value, inputs first, in execution order; a value is freed after its last use."""
    generator = torch.Generator().manual_seed(source.seed)
    for node, values in g.walk(teacher, source.inputs):
        stats = source.stats.get(node.name) if source.at_batchnorm != "keep" else None
        if stats is not None and source.at_batchnorm == "draw":
            values[node] = draw(stats, (source.num_images, *g.shape(node)[1:]), generator)
        elif node not in values:
            values[node] = g.execute(node, values)
            if stats is not None:
                values[node] = restandardise(values[node], stats)
        yield node, values[node]


def mirrored(teacher: fx.GraphModule, source: Source) -> Iterator[tuple[fx.Node, Any, Any, dict[fx.Node, Any]]]:
    """Walk teacher and student side by side: yield (node, teacher's value, change, student's values).

    The student's value of a call is that of the same call on the student's inputs; that of a layer is None, for the
    caller to fill in. `change` is the gain and shift the teacher was re-standardised by, which the caller gives to the
    student's value too; None = it was not.
    """
    last_use = {used: node for node in teacher.graph.nodes for used in node.all_input_nodes}
    own: dict[fx.Node, Any] = {}
    for node, values in g.walk(teacher, source.inputs):
        if node.op == "placeholder":
            own[node] = values[node]
        else:
            own.update({n: values[n] for n in node.all_input_nodes if n.op == "get_attr"})
            own[node] = None if node.meta.get("layer") else g.execute(node, own)
            values[node] = g.execute(node, values)
        stats = source.stats.get(node.name) if source.at_batchnorm != "keep" else None
        change = restandardising(values[node], stats) if stats is not None else None
        if change is not None:
            values[node] = values[node] * change[0] + change[1]
        yield node, values[node], change, own
        for used in node.all_input_nodes:
            if last_use[used] is node:
                own.pop(used, None)


def restandardising(x: Float[Tensor, "n c ..."], stats: ChannelStats) -> tuple[Tensor, Tensor]:
    """Gain and shift (1, C, 1, 1) that bring every channel of the batch to what BatchNorm remembers (ours)."""
    mean, std = batch_statistics(x)
    gain = stats.std / std.clamp(min=1e-6)
    view = (1, -1, *[1] * (x.dim() - 2))
    return gain.view(view), (stats.mean - mean * gain).view(view)


def restandardise(x: Float[Tensor, "n c ..."], stats: ChannelStats) -> Float[Tensor, "n c ..."]:
    """The batch with the mean and standard deviation BatchNorm remembers (ours)."""
    gain, shift = restandardising(x, stats)
    return x * gain + shift


def batch_statistics(x: Float[Tensor, "n c ..."]) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Mean and standard deviation of every channel over the batch and all positions."""
    var, mean = torch.var_mean(x, dim=[0, *range(2, x.dim())], correction=0)
    return mean, (var + 1e-12).sqrt()  # dead channels have a gradient too
