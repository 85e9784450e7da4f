"""What an error of one layer does to the network's output, measured on the images of the signal (ours)."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from datafree import graph as g
from datafree.quantization import fake_quantize
from datafree.records import QParams
from datafree.signals import Signal

LEAST, NUMBERS = 8, 2**19  # images sent through the network for each probe, at least; numbers in them, at most
FEWEST = 2  # the same where memory is limited: one has no variance


@dataclass(frozen=True)
class Probe:
    """Other weights of one layer, to be put into the network to see how far that moves its output."""

    name: str
    error: float  # of the layer's output, as a share of its variance
    weight: Tensor
    shift: Tensor  # of the bias


class NetworkProbe:
    """The float network's values on a few images: a change of one layer costs only what comes after it.

    Args:
        most: bytes that the values may take, with fewer images where these are more; None = no bound but the signal's.
    """

    def __init__(self, teacher: fx.GraphModule, source: Signal, *, most: int | None = None) -> None:
        count = max(LEAST, NUMBERS // max(x[0].numel() for x in source.inputs))
        if limits := [limit for limit in (most, source.room.size) if limit is not None]:
            each = sum(math.prod(g.shape(n)[1:]) for n in teacher.graph.nodes if g.shape(n))
            count = min(count, max(FEWEST, min(limits) // max(1, 4 * each)))
        feed = iter(x[:count] for x in source.inputs)
        self.layers = {g.layer_name(node): node for node in teacher.graph.nodes if g.note(node).layer}
        self.nodes = [node for node in teacher.graph.nodes if node.op == "call_function"]
        self.returned = g.outputs(teacher)
        self.last_use = {n: node for node in self.nodes for n in node.all_input_nodes if n not in self.returned}
        self.values: dict[fx.Node, Any] = {}
        with torch.no_grad():
            for node in teacher.graph.nodes:
                if node.op == "placeholder":
                    self.values[node] = next(feed)
                elif node.op == "get_attr":
                    self.values[node] = g.get_tensor(teacher, node.target)
                elif node.op == "call_function":
                    self.values[node] = g.execute(node, self.values)
        wanted = self._outputs(self.values)
        self.power = float((wanted - wanted.mean(0)).square().sum().clamp(min=1e-30))

    def output_change(self, probes: Iterable[Probe]) -> Iterator[float]:
        """How far each probe moves the network's output, as a share of its variance over the images."""
        for probe in probes:
            layer = self.layers[probe.name]
            weight, bias = g.operand(layer, 1), g.operand(layer, 2)
            other = {weight: g.as_called(layer, probe.weight), bias: self.values[bias] + probe.shift}
            yield self._change(layer, other)

    def rounding_change(self, name: str, qparams: QParams) -> float:
        """How far rounding what enters one layer, and nothing else, moves the output; as a share of its variance."""
        layer = self.layers[name]
        read = g.operand(layer)
        return self._change(layer, {read: fake_quantize(self.values[read], qparams)})

    def _change(self, layer: fx.Node, other: dict[fx.Node, Tensor]) -> float:
        """The same, where one layer is called on other values than the network's."""
        with torch.no_grad():
            changed: dict[fx.Node, Any] = {layer: g.execute(layer, ChainMap(other, self.values))}
            now = ChainMap(changed, self.values)
            for node in self.nodes:
                if read := [n for n in node.all_input_nodes if n in changed]:
                    changed[node] = g.execute(node, now)
                    for n in read:
                        if self.last_use.get(n) is node:
                            del changed[n]
            return float((self._outputs(now) - self._outputs(self.values)).square().sum()) / self.power

    def _outputs(self, values: Any) -> Tensor:
        return torch.cat(
            [leaf.reshape(len(leaf), -1) for node in self.returned for leaf in tree_leaves(values[node])], 1
        )
