"""Multiply-adds counted while they are spent: by hand on a tiny net, and against torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from datafree import Recipe, compress
from datafree import graph as g
from datafree.execution.mac_counter import add_macs, count_macs, counting_pool, uncounted
from datafree.execution.pools import processes, serial
from datafree.graph.capture import trace
from nets import NETS, THREE_FAST

TINY = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten())
TINY_MACS = 4 * 27 * 64 + 4 * 9 * 36  # 8x8 positions of the first, 6x6 of the second


def run(graph, inputs):
    for node, values in g.walk(graph, inputs):
        if node not in values:
            values[node] = g.execute(node, values)


def test_forward_passes_are_counted_as_by_hand():
    graph = trace(TINY.eval(), torch.zeros(2, 3, 8, 8))
    with count_macs() as spent, torch.no_grad():
        run(graph, (torch.zeros(5, 3, 8, 8),))
    assert spent.macs == 5 * TINY_MACS


def test_a_backward_pass_counts_each_operand_that_wants_a_gradient():
    graph = trace(TINY.eval(), torch.zeros(2, 3, 8, 8))
    for parameter in graph.parameters():
        parameter.requires_grad_(False)
    x = torch.zeros(1, 3, 8, 8, requires_grad=True)
    with count_macs() as spent, torch.enable_grad():
        run(graph, (x,))
    assert spent.macs == 2 * TINY_MACS  # forward, and the gradient of x


@pytest.mark.parametrize("name", THREE_FAST)
def test_counts_are_those_of_torch(name):
    model, inputs = NETS[name]()
    graph = trace(model, inputs)
    with torch.no_grad(), FlopCounterMode(display=False) as torch_counter, count_macs() as spent:
        run(graph, inputs)
    assert spent.macs > 0
    assert 2 * spent.macs == torch_counter.get_total_flops()


def _spend_seven(item):
    add_macs(7)
    return item


@pytest.mark.parametrize("pool", [serial, pytest.param(processes(2), marks=pytest.mark.slow)], ids=["serial", "two"])
def test_what_a_pool_spends_is_counted_here(pool):
    with count_macs() as spent:
        assert list(counting_pool(pool)(_spend_seven, [1, 2, 3])) == [1, 2, 3]
    assert spent.macs == 21


def test_an_inner_count_is_the_outer_ones_too():
    with count_macs() as outer:
        with count_macs() as inner:
            add_macs(3)
            assert outer.macs == 3
        add_macs(1)
        with uncounted():
            add_macs(9)
    assert (outer.macs, inner.macs) == (4, 3)
    add_macs(5)  # no counter: nowhere to go
    assert (outer.macs, inner.macs) == (4, 3)


def test_a_summary_says_what_the_compression_spent():
    model, inputs = NETS["residual"]()
    cheap = compress(model, Recipe.preset("w8a8").updated(["signal.images=2"]), inputs).summary
    dear = compress(model, Recipe.preset("w8a8").updated(["signal.images=4"]), inputs).summary
    assert cheap.forward_equivalents == pytest.approx(cheap.spent_macs / cheap.float_macs)
    assert 2 <= cheap.forward_equivalents < dear.forward_equivalents
    moved = ["signal.kind=inverted", "signal.steps=3", "signal.images=2"]
    inverted = compress(model, Recipe.preset("w8a8").updated(moved), inputs).summary
    assert inverted.forward_equivalents - cheap.forward_equivalents == pytest.approx(2 * 3 * 2 + 2, rel=0.35)


def test_distillation_pays_for_the_teacher():
    """A step: the teacher forward, the student forward and back to its weights and activations."""
    model, inputs = NETS["chain"]()
    settings = ["signal.kind=inverted", "signal.steps=1", "signal.images=8", "distill.batch=8"]
    few, many = (
        compress(model, Recipe.preset("w8a8").updated([*settings, f"distill.steps={n}"]), inputs).summary
        for n in (10, 30)  # both are looked at ten times
    )
    a_step = (many.spent_macs - few.spent_macs) / (20 * 6 * few.float_macs)  # six of eight images are trained on
    assert 1 + 2 < a_step < 1 + 3
