"""Channels that change places leave the network's function as it is: on every tiny net, on hazards, on real CNNs."""

from __future__ import annotations

import functools
import random

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from datafree import graph as g
from datafree import load_model
from datafree.graph.capture import trace
from datafree.graph.channel_order import interchangeable, reorder_
from datafree.teacher.batchnorm import fold_batchnorm_
from nets import IMAGE, NETS, block, calibrate_batchnorm_, conv, randomise_batchnorm_

FAST = ("residual", "depthwise inverted residual", "grouped", "concat", "channel shuffle and split", "pre-activation")
TINY = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in NETS
    if name != "in place through a view"
]


def outputs(module, inputs):
    with torch.no_grad():
        return [value.double() for value in tree_leaves(module(*inputs))]


@functools.cache
def folded(name):
    model, inputs = NETS[name]()
    graph = trace(model, inputs)
    return graph, fold_batchnorm_(graph)[0], inputs


def shuffled(groups, seed=0):
    order = list(range(len(groups)))
    random.Random(seed).shuffle(order)
    return groups, tuple(order)


def check_reordering(graph, inputs, orders):
    """The function is unchanged, and the values of every node are those of before in the order that is returned."""
    wanted, changed = outputs(graph, inputs), g.duplicate(graph)
    moved = reorder_(changed, orders)
    for one, other in zip(outputs(changed, inputs), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
    with torch.no_grad():
        before, after = ({n.name: v[n] for n, v in steps(own, inputs)} for own in (graph, changed))
    for name, were in moved.items():
        torch.testing.assert_close(after[name], before[name][:, were], rtol=1e-3, atol=1e-3)
    return moved


def steps(graph, inputs):
    for node, values in g.walk(graph, inputs):
        if node not in values:
            values[node] = g.execute(node, values)
        yield node, dict(values)


@pytest.mark.parametrize("name", TINY)
def test_any_order_gives_the_same_network(name):
    graph, _, inputs = folded(name)
    sets = interchangeable(graph)
    moved = check_reordering(graph, inputs, [shuffled(groups) for groups in sets])
    assert bool(moved) == bool(sets)


@pytest.mark.parametrize("name", ["residual", "depthwise inverted residual", "grouped"])
def test_there_are_channels_to_reorder(name):
    assert interchangeable(folded(name)[0])


class Halves(nn.Module):
    """Two halves of one layer's channels, and one layer that reads both: they may not be mixed."""

    def __init__(self):
        super().__init__()
        self.first, self.last = block(3, 8), conv(8, 4)

    def forward(self, x):
        one, two = self.first(x).chunk(2, 1)
        return self.last(torch.cat([one.relu(), two.sigmoid()], 1))


def test_channels_that_pass_through_other_nodes_are_not_mixed():
    model = Halves().eval()
    randomise_batchnorm_(model, torch.Generator().manual_seed(0))
    inputs = (torch.randn(IMAGE),)
    graph = trace(model, inputs)
    fold_batchnorm_(graph)
    assert sorted(len(groups) for groups in interchangeable(graph)) == [4, 4]
    check_reordering(graph, inputs, [shuffled(groups) for groups in interchangeable(graph)])


def test_channels_with_a_slope_of_their_own_stay():
    model = nn.Sequential(conv(3, 8), nn.PReLU(8), conv(8, 4)).eval()
    assert interchangeable(trace(model, torch.randn(IMAGE))) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm:resnet18", "timm:mobilenetv2_100", "timm:regnety_002", "timm:densenet121"])
def test_real_networks_compute_the_same_in_another_order(name):
    model, example = load_model(name)
    inputs = (torch.randn(2, *example.shape[1:], generator=torch.Generator().manual_seed(1)),)
    calibrate_batchnorm_(model.eval(), *inputs)
    graph = trace(model, inputs)
    fold_batchnorm_(graph)
    sets = interchangeable(graph)
    assert sets and check_reordering(graph, inputs, [shuffled(groups) for groups in sets])
