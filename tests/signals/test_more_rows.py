"""Procedural images among those made: for pruning alone, not kept, and not where there is nothing to join."""

from __future__ import annotations

import pytest
import torch

from datafree import Recipe, compress
from datafree.app.sentences import signal_text
from datafree.graph.capture import trace
from datafree.recipe import Inverted, Propagated
from datafree.run.expected import expected_work
from datafree.signals import make_signal, with_probes, without_probes
from datafree.solve import plan_layers
from datafree.teacher.batchnorm import fold_batchnorm_
from nets import NETS, small_network

FEW = ["signal.images=6", "signal.steps=2", "prune.steps=2"]


def made(recipe, **given):
    model, x = small_network()
    graph = trace(model, x[:1])
    stats = fold_batchnorm_(graph)[0]
    return graph, make_signal(graph, stats, recipe, seed=3, **given)


def test_every_second_image_is_procedural_and_the_others_are_those_made():
    graph, signal = made(Inverted(images=6, steps=2))
    joined = with_probes(graph, signal, Inverted())
    assert joined.num_images == 12 and joined.has_probes
    assert joined.inputs[0][::2].equal(signal.inputs[0]) and without_probes(joined)[0].equal(signal.inputs[0])
    probes, (range_, images) = joined.inputs[0][1::2], (signal.input_range, signal.inputs[0])
    assert not any(probe.equal(image) for probe in probes for image in images)
    torch.testing.assert_close(probes.mean((0, 2, 3)), torch.tensor(range_.mean).expand(3), atol=0.5, rtol=0)
    assert with_probes(graph, signal, Inverted()).inputs[0].equal(joined.inputs[0])


def test_where_there_are_many_none_joins():
    graph, signal = made(Inverted(images=128, steps=1))
    assert with_probes(graph, signal, Inverted()) is signal


def test_procedural_images_and_networks_without_batchnorm_take_none():
    graph, signal = made(Propagated(images=6))
    assert with_probes(graph, signal, Propagated()) is signal
    model, x = NETS["no batchnorm at all"]()
    run = compress(model, Recipe.preset("prune50").updated(FEW), x)
    assert run.summary.signal.num_images == 6 and not run.summary.signal.has_probes


def weights(run):
    return [layer.weight for layer in run.layers]


def test_pruning_solves_on_twice_as_many_and_keeps_those_made():
    model, x = small_network()
    recipe = Recipe.preset("prune50").updated(FEW)
    run = compress(model, recipe, x[:1])
    assert run.images[0].shape[0] == 6 and run.summary.signal.num_images == 12
    assert "inverted, 12 images, half of them procedural" in signal_text(run.summary.signal, run.summary.input_range)
    again = compress(model, recipe, x[:1], images=run)
    assert again.images[0].equal(run.images[0]) and again.summary.signal.num_images == 12
    assert all(map(torch.equal, weights(run), weights(again)))
    without = compress(model, recipe.updated(["prune.probes=false"]), x[:1], images=run)
    assert without.summary.signal.num_images == 6
    assert not all(map(torch.equal, weights(run), weights(without)))


@pytest.mark.parametrize("kind, more", [("inverted", True), ("propagated", False)])
def test_what_is_ahead_counts_them(kind, more):
    model, x = small_network()
    graph = trace(model, x[:1])
    fold_batchnorm_(graph)
    works = []
    for probes in ("false", "true"):
        recipe = Recipe.preset("prune50").updated([*FEW[:1], f"signal.kind={kind}", f"prune.probes={probes}"])
        works.append(expected_work(graph, plan_layers(graph, recipe), recipe, remembers=True))
    before, now = (work.phases for work in works)
    assert (now["solving layers"] > before["solving layers"]) is more
    assert now.get("making images") == before.get("making images")
