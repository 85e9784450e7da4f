"""Data-free quantization as published (arXiv 1906.04721): equalized layers, absorbed biases, ranges from BatchNorm."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from datafree import graph as g
from datafree.graph import aten
from datafree.graph.capture import trace
from datafree.models.load import input_range
from datafree.recipe import Propagated
from datafree.records import ChannelStats, InputRange, Layer, Stats
from datafree.signals import make_signal
from datafree.signals.gaussian import clipped_moments
from datafree.teacher.batchnorm import fold_batchnorm_
from datafree.teacher.equalize import column_range, row_range

Range = tuple[float, float]
Pair = tuple[Layer, Layer]

SWEEPS, SETTLED = 100, 1e-3  # of equalization: at most so many, until no scale is further from 1
DEAD = 1e-8  # of a layer's largest range: such a channel keeps its scale
ABSORBED, REACH = 3.0, 6.0  # standard deviations: below the mean a value hardly falls; a range reaches to both sides
CLIPPED = {aten.relu.default: torch.inf, aten.relu6.default: 6.0, aten.hardtanh.default: 6.0}  # the largest value
BETWEEN = {aten.relu.default, aten.constant_pad_nd.default}  # of layers in a row


@dataclass(frozen=True)
class Prepared:
    """A float network ready to be rounded, what its tensors reach to and their channels' means, by node name."""

    teacher: fx.GraphModule
    ranges: dict[str, Range]
    means: dict[str, Tensor]


def prepare(model: nn.Module, example: Tensor, *, replace_relu6: bool, seed: int) -> Prepared:
    """All that DFQ does before weights are rounded.

    Args:
        replace_relu6: as published; the function changes, but layers on both sides can be equalized. Else layers with
            ReLU6 between are left as they are.
    """
    teacher = trace(model, example)
    stats, _ = fold_batchnorm_(teacher)
    if replace_relu6:
        _replace_relu6(teacher)
    pairs = in_a_row(teacher)
    stats = absorbed(teacher, equalized(teacher, stats, pairs), pairs)
    signal = make_signal(teacher, stats, Propagated(), seed=seed, input_range=input_range(model))
    assert signal.input_limits is not None, "inputs were made here"
    return Prepared(teacher, *propagated(teacher, stats, signal.input_range, signal.input_limits))


def _replace_relu6(teacher: fx.GraphModule) -> None:
    """ReLU6 becomes ReLU: equalization needs f(s x) = s f(x) (DFQ, 5.1.1)."""
    for node in teacher.graph.nodes:
        if node.target in CLIPPED:
            node.target, node.args = aten.relu.default, node.args[:1]
    teacher.recompile()


def in_a_row(teacher: fx.GraphModule) -> list[Pair]:
    """Pairs of layers where the second alone reads the first, with at most ReLU and padding between."""
    layers, found = g.layers(teacher), []
    for layer in layers.values():
        node = g.node_of(teacher, layer.node)
        while len(users := list(node.users)) == 1 and users[0].target in BETWEEN:
            node = users[0]
        if len(users) == 1 and g.note(users[0]).layer and users[0].args[0] is node:
            after = layers[g.layer_name(users[0])]
            if len(g.bias(teacher, layer)) == g.weight(teacher, after).shape[1] * after.groups:
                found.append((layer, after))
    return found


def equalized(teacher: fx.GraphModule, stats: Stats, pairs: list[Pair]) -> Stats:
    """Give channel i of both layers one range, again and again (DFQ, eq. 11):

        s_i = sqrt(r(W2[:, i]) / r(W1[i])),   W1[i] *= s_i, b1[i] *= s_i,   W2[:, i] /= s_i

    Returns:
        The statistics, moved with the weights.
    """
    for _ in range(SWEEPS):
        furthest = 0.0
        for first, second in pairs:
            w1, w2 = g.weight(teacher, first), g.weight(teacher, second)
            r1, r2 = row_range(w1), column_range(w2, second.groups)
            alive = (r1 > DEAD * r1.max()) & (r2 > DEAD * r2.max())
            s = torch.where(alive, (r2 / r1.clamp(min=1e-30)).sqrt(), 1.0)
            rows = g.grouped(w2, second.groups) / taps(s, second, w2)[:, None]
            g.set_tensor(teacher, f"{first.name}.weight", w1 * s.view(-1, *[1] * (w1.dim() - 1)))
            g.set_tensor(teacher, f"{first.name}.bias", g.bias(teacher, first) * s)
            g.set_tensor(teacher, f"{second.name}.weight", rows.reshape(w2.shape))
            stats = {n: known.scaled(s) if n == first.node else known for n, known in stats.items()}
            furthest = max(furthest, float(s.log().abs().max()))
        if furthest < SETTLED:
            break
    return stats


def absorbed(teacher: fx.GraphModule, stats: Stats, pairs: list[Pair]) -> Stats:
    """Move what is surely positive into the next layer (DFQ, 4.1.3): c = max(0, beta - 3 gamma), b1 -= c, b2 += W2 c.

    Exact where x > c and nothing is padded.

    Returns:
        The statistics, moved with the biases.
    """
    stats = dict(stats)
    for first, second in pairs:
        if first.node in stats:
            known, weight = stats[first.node], g.weight(teacher, second)
            c = (known.mean - ABSORBED * known.std).clamp(min=0)
            moved = torch.einsum("gon,gn->go", g.grouped(weight, second.groups), taps(c, second, weight)).flatten()
            g.set_tensor(teacher, f"{first.name}.bias", g.bias(teacher, first) - c)
            g.set_tensor(teacher, f"{second.name}.bias", g.bias(teacher, second) + moved)
            stats[first.node] = replace(known, mean=known.mean - c)
    return stats


def taps(channels: Float[Tensor, " c"], layer: Layer, weight: Tensor) -> Float[Tensor, "g n"]:
    """One value an input channel, repeated for every tap that reads it."""
    return channels.view(layer.groups, -1).repeat_interleave(weight[0, 0].numel(), 1)


# ---- what BatchNorm says of every tensor

Normal = dict[fx.Node, tuple[Any, Any]]
"""Mean and variance, each as large as the tensor of one image."""


def propagated(
    teacher: fx.GraphModule, stats: Stats, chosen: InputRange, reach: tuple[Range, ...]
) -> tuple[dict[str, Range], dict[str, Tensor]]:
    """The range of every tensor and the means of its channels (C,), by node name.

    BatchNorm says both of the layer before it, beta and gamma; ReLU cuts a normal distribution. Behind sums and layers
    without BatchNorm, means and variances are those of independent values (ours, the paper is silent).
    """
    normal: Normal = {}
    bounds: dict[fx.Node, Range] = {}
    feed = iter(reach)
    for node in teacher.graph.nodes:
        if node.op == "placeholder":
            view = (1, -1, *[1] * (len(g.shape(node)) - 2))
            mean, std = (torch.tensor(v).view(view).expand(1, *g.shape(node)[1:]) for v in (chosen.mean, chosen.std))
            normal[node], bounds[node] = (mean, std.square()), next(feed)
        elif node.op == "get_attr":
            normal[node] = (g.get_tensor(teacher, node.target),) * 2
        elif node.op == "call_function":
            normal[node] = _normal(node, normal, stats)
            if isinstance(normal[node][0], Tensor):
                bounds[node] = _bounds(node, normal, bounds, known=node.name in stats)
    means = {n: normal[n][0] for n in bounds if normal[n][0].dim() > 1}
    means = {n.name: mean.mean([0, *range(2, mean.dim())]) for n, mean in means.items()}
    return {node.name: ends for node, ends in bounds.items()}, means


def _normal(node: fx.Node, normal: Normal, stats: Stats) -> tuple[Any, Any]:
    means, variances = ({n: both[i] for n, both in normal.items()} for i in (0, 1))
    if node.target in CLIPPED:
        mean, variance = normal[node.args[0]]
        cut = clipped_moments(ChannelStats(mean.flatten(), variance.flatten().sqrt()), 0.0, CLIPPED[node.target])
        return cut[0].view_as(mean), cut[1].view_as(mean)
    mean = g.execute(node, means)
    if node.name in stats:
        known, view = stats[node.name], (1, -1, *[1] * (mean.dim() - 2))
        return known.mean.view(view).expand_as(mean), known.std.square().view(view).expand_as(mean)
    if g.note(node).layer:
        return mean, node.target(variances[node.args[0]], means[node.args[1]].square(), None, *node.args[3:])
    return mean, g.execute(node, variances)  # values are moved, added or averaged


def _bounds(node: fx.Node, normal: Normal, bounds: dict[fx.Node, Range], *, known: bool) -> Range:
    """Six deviations to both sides where something is computed; what only moves or cuts keeps its input's range."""
    sources = [bounds[n] for n in node.all_input_nodes if n in bounds]
    if node.target in CLIPPED:
        return 0.0, min(CLIPPED[node.target], max(0.0, sources[0][1]))
    if not known and not g.note(node).layer and (len(sources) == 1 or node.target is aten.cat.default):
        return min(low for low, _ in sources), max(high for _, high in sources)
    mean, std = normal[node][0], normal[node][1].sqrt()
    return float((mean - REACH * std).min()), float((mean + REACH * std).max())
