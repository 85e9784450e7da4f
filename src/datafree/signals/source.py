"""Where every layer's inputs come from: one walk through the teacher that yields true-to-life values at every node."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx

from datafree import graph as g
from datafree.execution import ALL_IN_MEMORY, Parts, Room, in_turn
from datafree.records import ChannelStats, Fit, InputRange, Stats
from datafree.signals.gaussian import draw, is_passed_over, passed_over

DROWNED = 1e3  # mean^2 / variance above which float32 sums of squares are not enough


GIVEN = InputRange((), (), "the images given")


@dataclass(frozen=True)
class Signal:
    """A signal ready to flow.

    inputs: one tensor (N, ...) for each input of the graph.
    stats: BatchNorm statistics by node name.
    at_batchnorm: what happens where statistics are known: "keep" the value, "restandardise" it to them (ours), or
        "draw" it from them without running what comes before (paper, eq. 2-3).
    input_stats: of inputs that are drawn, too, by node name.
    pooling: "executed" as everything else, or "ignored": passed over, for draws keep the statistics before it (paper).
    input_limits: for each input made here, the smallest and largest value a real one may have; None = as in `inputs`.
    input_range: mean and deviation that images of the first input were made in.
    distance: from BatchNorm's statistics, before and after images were moved to them; None = none were. Without
        BatchNorm, the cross entropy of what they were moved towards.
    towards: what images were moved towards where there is no BatchNorm; "" = they were not.
    asked: percent of the images that show the class they were asked for; None = none was.
    at_once: images that the network saw at a time once the device's memory had run out; None = it did not.
    unmoved: why images of a kind that is moved are as they were.
    fit: of given images with the statistics.
    has_probes: every second image is a procedural one.
    room: for what is on its way in a walk.
    """

    kind: str
    inputs: tuple[Tensor, ...]
    stats: Stats = field(default_factory=dict)
    at_batchnorm: str = "keep"
    pooling: str = "executed"
    seed: int = 0
    input_limits: tuple[tuple[float, float], ...] | None = None
    input_range: InputRange = GIVEN
    distance: tuple[float, float] | None = None
    asked: float | None = None
    at_once: int | None = None
    unmoved: str = ""
    fit: Fit | None = None
    has_probes: bool = False
    towards: str = ""
    generator: Any = None  # the network that made them
    input_stats: Stats = field(default_factory=dict)
    room: Room = ALL_IN_MEMORY

    @property
    def draws(self) -> bool:
        return self.at_batchnorm == "draw"

    @property
    def drawn(self) -> Stats:
        """Statistics of all that is drawn, by node name."""
        return {**self.stats, **self.input_stats}

    @property
    def num_images(self) -> int:
        return len(self.inputs[0])


def walk_teacher(teacher: fx.GraphModule, source: Signal) -> Iterator[tuple[fx.Node, Any]]:
    """Yield every node with its value, inputs first, in execution order; a value is freed after its last use."""
    generator = torch.Generator().manual_seed(source.seed)
    known = source.drawn if source.at_batchnorm != "keep" else {}
    parts = Parts(source.room, source.num_images)
    for node, values in g.walk(teacher, source.inputs):
        stats = known.get(node.name)
        if stats is not None and source.draws:
            values[node] = draw(stats, (source.num_images, *g.shape(node)[1:]), generator)
        elif source.pooling == "ignored" and is_passed_over(node):
            values[node] = passed_over(node, values[g.operand(node)], generator)
        elif node not in values:
            values[node] = execute_in_parts(node, values, parts)
            if stats is not None:
                values[node] = _changed(values[node], restandardising(values[node], stats), parts)
        yield node, values[node]
        parts.put_away()


def walk_both(teacher: fx.GraphModule, source: Signal) -> Iterator[tuple[fx.Node, Any, Any, dict[fx.Node, Any]]]:
    """Walk teacher and student side by side: yield (node, teacher's value, change, student's values).

    The student's value of a call is that of the same call on the student's inputs; that of a layer is None, for the
    caller to fill in. `change` is the gain and shift the teacher was re-standardised by, which the caller gives to the
    student's value too; None = it was not.
    """
    last_use = {used: node for node in teacher.graph.nodes for used in node.all_input_nodes}
    own: dict[fx.Node, Any] = {}
    parts = Parts(source.room, source.num_images)
    for node, values in g.walk(teacher, source.inputs):
        if node.op == "placeholder":
            own[node] = values[node]
        else:
            own.update({n: values[n] for n in node.all_input_nodes if n.op == "get_attr"})
            own[node] = None if g.note(node).layer else execute_in_parts(node, own, parts)
            values[node] = execute_in_parts(node, values, parts)
        stats = source.stats.get(node.name) if source.at_batchnorm != "keep" else None
        change = restandardising(values[node], stats) if stats is not None else None
        if change is not None:
            values[node] = _changed(values[node], change, parts)
        yield node, values[node], change, own
        parts.put_away()
        for used in node.all_input_nodes:
            if last_use[used] is node:
                own.pop(used, None)


def execute_in_parts(node: fx.Node, values: Mapping[fx.Node, Any], parts: Parts) -> Any:
    """Run one call, on a few images at a time where there is no room for all; sums may round differently then."""
    if not parts.is_limited:
        return g.execute(node, values)
    batches = [n for n in node.all_input_nodes if n.op != "get_attr"]
    alike = len({values[n].dim() for n in batches if parts.is_batch(values[n])}) == 1
    if not alike or not g.is_by_image(node) or not all(parts.is_batch(values[n]) for n in batches):
        found = g.execute(node, values)
        return parts.keep(found) if isinstance(found, Tensor) else found
    constants = {n: values[n] for n in node.all_input_nodes if n.op == "get_attr"}
    return parts.apply(
        lambda *some: g.execute(node, {**constants, **dict(zip(batches, some, strict=True))}),
        *(values[n] for n in batches),
        gives=math.prod(g.shape(node)[1:]),
    )


def _changed(x: Tensor, change: tuple[Tensor, Tensor], parts: Parts) -> Tensor:
    """Times a gain and plus a shift."""
    return parts.apply(lambda some: some * change[0] + change[1], x)


def restandardising(x: Float[Tensor, "n c ..."], stats: ChannelStats) -> tuple[Tensor, Tensor]:
    """Gain and shift (1, C, 1, 1) that bring every channel of the batch to what BatchNorm remembers (ours)."""
    mean, std = batch_statistics(x)
    gain = stats.std / std.clamp(min=1e-6)
    view = (1, -1, *[1] * (x.dim() - 2))
    return gain.view(view), (stats.mean - mean * gain).view(view)


def _over_positions(x: Tensor, places: list[int]) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
    """Sum and norm of every image and channel."""
    found = [(part.sum(places), torch.linalg.vector_norm(part, dim=places)) for part in in_turn(x)]
    sums, norms = zip(*found, strict=True)
    return (torch.cat(sums), torch.cat(norms)) if len(found) > 1 else found[0]


def restandardise(x: Float[Tensor, "n c ..."], stats: ChannelStats) -> Float[Tensor, "n c ..."]:
    """The batch with the mean and standard deviation BatchNorm remembers (ours)."""
    gain, shift = restandardising(x, stats)
    return x * gain + shift


def batch_statistics(x: Float[Tensor, "n c ..."]) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Mean and standard deviation of every channel over the batch and all positions."""
    return _BatchStatistics.apply(x)  # type: ignore[return-value]


class _BatchStatistics(torch.autograd.Function):
    """From sums and sums of squares, with a gradient written out: about ten times faster on a CPU than `var_mean`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        places, count = list(range(2, x.dim())), x.numel() // x.shape[1]
        sums, norms = _over_positions(x, places) if places else (x, x)
        mean = sums.sum(0, dtype=torch.float64) / count
        var = norms.double().square().sum(0) / count - mean.square()
        drowned = mean.square() > DROWNED * var
        if bool(drowned.any()):  # too little of the sum of squares is variance
            var[drowned] = x[:, drowned].double().var([0, *places], correction=0)
        mean, std = mean.to(x.dtype), (var + 1e-12).sqrt().to(x.dtype)  # dead channels have a gradient too
        ctx.save_for_backward(x, mean, std)
        return mean, std

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, mean, std = ctx.saved_tensors
        slope = grads[1] / std  # d std / d x = (x - mean) / (count std)
        view = (1, -1, *[1] * (x.dim() - 2))
        count = x.numel() // x.shape[1]
        return (x * (slope / count).view(view)).add_(((grads[0] - slope * mean) / count).view(view))
