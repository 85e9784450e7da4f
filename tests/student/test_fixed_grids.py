"""Grids that LiteRT's specification prescribes: what they change, and what they leave as it is."""

import functools
from dataclasses import replace

import pytest
import torch
from torch import nn

from datafree import Recipe, compress
from datafree import graph as g
from datafree.recipe import TARGETS
from datafree.student import DEQUANTIZE, QUANTIZE, fit_grids_
from nets import NETS, conv

CHEAP = ["signal.kind=propagated", "signal.images=2", "solve.method=nearest", "solve.mend=false"]
FREE = replace(TARGETS["arm"], fixed_grids=False)


class Ends(nn.Module):
    """A sigmoid, a hyperbolic tangent and a softmax, each read by a layer; then windows that are averaged."""

    def __init__(self):
        super().__init__()
        self.first, self.gate, self.turn, self.last = conv(3, 8), conv(8, 8), conv(8, 8), conv(8, 8)

    def forward(self, x):
        x = self.turn(torch.tanh(self.gate(torch.sigmoid(self.first(x)))))
        return self.last(nn.functional.avg_pool2d(torch.softmax(x, 1), 2)).mean((2, 3))


@functools.cache
def made(name):
    torch.manual_seed(0)
    model, inputs = (Ends().eval(), (torch.randn(2, 3, 16, 16),)) if name == "ends" else NETS[name]()
    return compress(model, Recipe.preset("w8a8").updated([*CHEAP, "target=arm"]), inputs), inputs


def grids_behind(run, name):
    """(scale, zero_point) of what an operator gives, pair after pair."""
    [node] = [n for n in run.student.graph.nodes if n.op == "call_function" and name in str(n.target)]
    found = []
    while node is not None:
        node = next((user for user in node.users if user.target is QUANTIZE), None)
        if node is not None:
            found.append(node.args[1:3])
            node = next(iter(node.users))
    return found


@pytest.mark.parametrize(
    "name, grid", [("sigmoid", (1 / 256, -128)), ("tanh", (1 / 128, 0)), ("softmax", (1 / 256, -128))]
)
def test_known_ranges_have_known_grids(name, grid):
    assert grids_behind(made("ends")[0], name)[0] == grid


def test_averages_are_on_the_grid_of_what_they_read():
    run, _ = made("ends")
    [pool] = [node for node in run.student.graph.nodes if "avg_pool2d" in str(node.target)]
    assert g.operand(pool).target is DEQUANTIZE
    assert grids_behind(run, "avg_pool2d")[0] == g.operand(pool).args[1:3]


def test_what_is_put_together_is_on_the_grid_of_the_result_and_no_value_changes():
    run, inputs = made("concat")
    joined = [node for node in run.student.graph.nodes if g.operator_of(node).channels == "joins"]
    for node in joined:
        [quantize] = node.users
        assert all(x.target is DEQUANTIZE and x.args[1:] == quantize.args[1:] for x in node.all_input_nodes)
    bare = g.duplicate(run.student)
    for node in [n for n in bare.graph.nodes if g.operator_of(n).channels == "joins"]:
        for operand in node.all_input_nodes:
            before = g.operand(g.operand(operand))
            if before.target is DEQUANTIZE:
                node.replace_input_with(operand, before)
    g.tidy(bare)
    assert len(bare.graph.nodes) < len(run.student.graph.nodes)
    with torch.no_grad():
        assert torch.equal(bare(*inputs), run.student(*inputs))


def test_a_second_time_and_other_targets_change_nothing():
    run, _ = made("ends")
    for target in (TARGETS["arm"], FREE, *TARGETS.values()):
        again = g.duplicate(run.student)
        fit_grids_(again, target)
        assert len(again.graph.nodes) == len(run.student.graph.nodes)
