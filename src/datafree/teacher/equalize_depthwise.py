"""One range for all channels that enter a depthwise layer: AFCLE's v_i where it costs nothing."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, fx

from datafree import graph as g
from datafree.records import Layer, Stats

REACH = 4.0  # standard deviations around the mean
WIDEST = 50.0  # a channel is stretched by no more than this


def balance_depthwise_(teacher: fx.GraphModule, stats: Stats) -> tuple[str, ...]:
    """Scale the channels that enter a depthwise layer to one range, so that one grid serves them all (ours).

        x' = v_i x,   W' = W / v_i,   v_i = max_c r_c / r_c,   r = |f(mean +- 4 std)|, f what lies after the BatchNorm

    Every channel of a depthwise layer has weights and a scale of its own, so W' rounds as W does. v_i folds into the
    requantization of the layer before, the only one whose output is touched; its ReLU6 needs no scaling, for the top
    of the grid, at most 6, is where every stretched channel saturates.

    Returns:
        Names of the depthwise layers whose input was balanced. The function of the network does not change.
    """
    by_name = g.nodes_by_name(teacher)
    balanced = []
    for name, layer in g.layers(teacher).items():
        node, weight = by_name[layer.node], g.weight(teacher, layer)
        reach = _reach(g.operand(node), stats) if _is_depthwise(layer, weight) else None
        if reach is None or not bool(torch.isfinite(reach).all()) or not bool((reach > 0).any()):
            continue
        v_i = reach.max() / reach.clamp(min=float(reach.max()) / WIDEST)
        g.set_tensor(teacher, f"{name}.weight", weight / v_i.view(-1, *[1] * (weight.dim() - 1)))
        g.scale_input(teacher, node, f"{name}.v_i", g.type_of(layer).along_channels(v_i))
        balanced.append(name)
    g.tidy(teacher)
    return tuple(balanced)


def _is_depthwise(layer: Layer, weight: Tensor) -> bool:
    return layer.groups == weight.shape[0] > 1 and weight.shape[1] == 1


def _reach(node: fx.Node, stats: Stats) -> Float[Tensor, " c"] | None:
    """Largest absolute value of every channel, from the BatchNorm that it comes from alone; None = there is no such."""
    between = []
    while node.name not in stats:
        if len(node.users) != 1 or not g.operator_of(node).elementwise or len(node.all_input_nodes) != 1:
            return None
        between.append(node)
        node = node.all_input_nodes[0]
    if len(node.users) != 1:
        return None
    known = stats[node.name]
    low, high = known.mean - REACH * known.std, known.mean + REACH * known.std
    ends = torch.stack([low, high])[(..., *[None] * (len(g.shape(node)) - 2))]  # (2, C, 1, 1)
    values = {node: ends}
    for step in reversed(between):
        values[step] = ends = g.execute(step, values)
    return ends.abs().transpose(0, 1).flatten(1).amax(1)
