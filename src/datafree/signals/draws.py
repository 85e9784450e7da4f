"""One layer's inputs on the paper's signal, drawn afresh as often as they are wanted: a small picklable program."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from datafree import graph as g
from datafree.graph import argument, operator_by_name, operator_of, taps_inside
from datafree.quantization import fake_quantize
from datafree.records import ChannelStats, Layer, QParams, Stats
from datafree.signals.gaussian import draw, is_passed_over

FLATTEN = "aten.flatten.using_ints"


@dataclass(frozen=True)
class Value:
    """The value of a step before, by its number."""

    number: int


@dataclass(frozen=True)
class Step:
    """A draw from `stats` at `rank` dimensions; or an operator, by its name, on values before it and constants."""

    operator: str = ""
    args: tuple[Any, ...] = ()
    stats: ChannelStats | None = None
    rank: int = 4


@dataclass(frozen=True)
class LayerDraws:
    """The inputs of one layer: every call draws others.

    inside: (p, taps), 1 where a tap of the kernel lies inside the image, for every output position.
    qparams: grid of the layer's input; None = float.
    """

    steps: tuple[Step, ...]
    layer: Layer
    inside: Float[Tensor, "p t"]
    qparams: QParams | None = None

    def patches(self, count: int, generator: torch.Generator) -> Float[Tensor, "r taps"]:
        """What the kernel covers at `count` random output positions, zeros where that is outside; before rounding."""
        values: list[Tensor] = []
        for step in self.steps:
            args: Any = map_aggregate(step.args, lambda a: values[a.number] if isinstance(a, Value) else a)
            if step.stats is not None:
                shape = (count, len(step.stats.mean), *self.layer.kernel, *[1] * step.rank)[: step.rank]
                values.append(draw(step.stats, shape, generator))
            else:
                values.append(operator_by_name(step.operator)(*args))
        if values[-1].dim() == 2:
            return values[-1]
        at = torch.randint(len(self.inside), (count,), generator=generator)
        covered = values[-1] * self.inside[at].view(count, 1, *self.layer.kernel)
        return covered.flatten(1)

    def __call__(self, count: int, generator: torch.Generator) -> Float[Tensor, "r g n"]:
        """`count` unfolded inputs as the layer sees them, n = taps of one output channel."""
        rows = self.patches(count, generator).reshape(count, self.layer.groups, -1)
        return rows if self.qparams is None else fake_quantize(rows, self.qparams)

    @property
    def on_patches(self) -> Layer:
        """The layer as it reads patches: a linear one, every tap a channel."""
        return Layer(self.layer.name, self.layer.node, "linear", groups=self.layer.groups)


def layer_draws(layer: Layer, node: fx.Node, stats: Stats, qparams: QParams | None = None) -> LayerDraws | None:
    """Draw the inputs of a layer from the BatchNorms before it, without a map: pixels are independent.

    Sums, concatenations and activations are computed on the draws; pooling is passed over (the paper). None where
    something else lies between that makes pixels or channels depend on each other: another layer, a gate.

    Args:
        node: the graph node of the layer's input.
        stats: of BatchNorm outputs and of the network's inputs, by node name.
        qparams: grid of the layer's input; None = float.
    """
    pads = [0, 0] * len(layer.kernel)
    while _is_zero_padding(node) and len(own := argument(node, "pad")) <= len(pads):
        pads = [a + b for a, b in itertools.zip_longest(pads, own, fillvalue=0)]
        node = g.operand(node)
    if len(g.shape(node)) != 2 + len(layer.kernel):
        return None
    program = _Program(g.graph_of(node), stats)
    try:
        program.value(node)
    except _NotDrawn:
        return None
    return LayerDraws(tuple(program.steps), layer, taps_inside(layer, g.shape(node)[2:], pads), qparams)


class _NotDrawn(Exception):
    """A node whose value is no function of independent pixels."""


class _Program:
    """Steps written down while the graph is read backwards from one node."""

    def __init__(self, graph: fx.GraphModule, stats: Stats) -> None:
        self.graph, self.stats = graph, stats
        self.steps: list[Step] = []
        self.values: dict[fx.Node, Value] = {}

    def value(self, node: fx.Node) -> Value:
        """The number of the step that yields this node's value."""
        if node not in self.values:
            step = self._step(node)
            if isinstance(step, Step):
                self.steps.append(step)
                step = Value(len(self.steps) - 1)
            self.values[node] = step
        return self.values[node]

    def _step(self, node: fx.Node) -> Step | Value:
        if node.name in self.stats:
            return Step(stats=self.stats[node.name], rank=len(g.shape(node)))
        if node.op != "call_function" or node.kwargs:
            raise _NotDrawn
        row = operator_of(node)
        if row.channels == "joins" and argument(node, "dim") == 1:
            return Step(str(node.target), ([self.value(part) for part in argument(node, "tensors")], 1))
        if (row.elementwise and not row.same_values) or _pads_channels(node):
            rank = len(g.shape(node))
            args = (self._argument(a, rank) if isinstance(a, fx.Node) else a for a in node.args)
            return Step(str(node.target), tuple(args))
        if not (row.elementwise or is_passed_over(node) or _flattens(node)):
            raise _NotDrawn
        source = g.operand(node)
        flat = len(g.shape(source)) == 4 and len(g.shape(node)) == 2
        return Step(FLATTEN, (self.value(source), 1)) if flat else self.value(source)

    def _argument(self, node: fx.Node, rank: int) -> Value | Tensor:
        """A value, or a constant that is the same at every pixel."""
        if node.op != "get_attr":
            return self.value(node)
        constant = g.tensor_of(self.graph, node)
        if constant.numel() > 1 and any(side > 1 for side in constant.shape[constant.dim() - rank + 2 :]):
            raise _NotDrawn
        return constant


def _flattens(node: fx.Node) -> bool:
    """From (N, C, 1, 1) to (N, C)."""
    source = node.args[0]
    if operator_of(node).channels != "moves" or not isinstance(source, fx.Node):
        return False
    before = g.shape(source)
    return len(before) == 4 and before[2:] == (1, 1) and g.shape(node) == before[:2]


def _pads_channels(node: fx.Node) -> bool:
    return _pads_constant(node) and len(argument(node, "pad")) == 6 and not any(argument(node, "pad")[:4])


def _is_zero_padding(node: fx.Node) -> bool:
    return _pads_constant(node) and not argument(node, "value")


def _pads_constant(node: fx.Node) -> bool:
    row = operator_of(node)
    return row.channels == "pads" and row.same_values
