"""Where memory is short, layers and networks are looked at in parts, and what is found is the same."""

from __future__ import annotations

import math

import pytest
import torch

from datafree import Recipe, compress
from datafree import graph as g
from datafree.graph import trace
from datafree.signals import Signal
from datafree.solve import NetworkProbe, Probe, solve_layer
from nets import NETS


@pytest.mark.parametrize("name", ["depthwise inverted residual", "grouped"])
def test_groups_of_a_layer_are_looked_at_one_by_one(name, monkeypatch):
    model, inputs = NETS[name]()
    recipe = Recipe.preset("w8a8").updated(["signal.images=8"])
    found = []
    for most in (solve_layer.LOOKED_BYTES, 1):
        monkeypatch.setattr(solve_layer, "LOOKED_BYTES", most)
        found.append([layer.input_db for layer in compress(model, recipe, inputs, progress=False).layers])
    assert found[0] == pytest.approx(found[1], rel=1e-4) and len(found[0]) > 2


def test_a_network_is_probed_on_fewer_images():
    model, (x,) = NETS["residual"]()
    teacher, few = trace(model, (x,)), torch.randn(8, *x.shape[1:], generator=torch.Generator().manual_seed(0))
    each = 4 * sum(math.prod(g.shape(node)[1:]) for node in teacher.graph.nodes if g.shape(node))
    probe, of_three = (
        NetworkProbe(teacher, Signal("given", (few,)), most=3 * each),
        NetworkProbe(teacher, Signal("given", (few[:3],))),
    )
    name, layer = next(iter(g.layers(teacher).items()))
    other = Probe(name, 0.1, 1.1 * g.weight(teacher, layer), torch.zeros(1))
    assert {len(v) for n, v in probe.values.items() if n.op == "placeholder"} == {3}
    assert [*probe.output_change([other])] == [*of_three.output_change([other])] != [0.0]
