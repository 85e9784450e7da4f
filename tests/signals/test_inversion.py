"""Deep Inversion as published: each loss against a plain restatement, its setting end to end, its competition."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from datafree import Recipe, compress
from datafree.graph.capture import trace
from datafree.recipe import Inverted, Matched
from datafree.records import ChannelStats, InputRange
from datafree.signals.inversion import PUBLISHED, competition, size, statistics_distance, total_variation
from datafree.signals.job import Competitor
from datafree.signals.matching import match, mismatch, schedule_of, steps_of
from datafree.signals.moving import MatchingError, check_loss
from datafree.teacher.batchnorm import fold_batchnorm_
from datafree.teacher.equalize import equalize_
from jobs import signal_job
from nets import NETS, THREE_FAST, small_network

UNIT = InputRange((0.0,), (1.0,), "given")


def folded(model, x, *, equalized=False):
    graph = trace(model, x[:1])
    stats, _ = fold_batchnorm_(graph)
    if equalized:
        stats, _ = equalize_(graph, stats, mode="foldable", rows=False)
    return graph, stats


def published_distance(model, x):
    """As the paper writes it: hooks on the inputs of BatchNorm in the network as it was."""
    found = []

    def look(module, inputs, output):
        mean = inputs[0].mean((0, 2, 3))
        var = inputs[0].var((0, 2, 3), correction=0)
        found.append((mean - module.running_mean).norm() + (var - module.running_var).norm())

    handles = [m.register_forward_hook(look) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return [float(v) for v in found]


@pytest.mark.parametrize("equalized", [False, True])
def test_the_distance_is_that_of_the_network_before_folding(equalized):
    model, x = small_network()
    graph, stats = folded(copy.deepcopy(model), x, equalized=equalized)
    other = 1.5 * x + 0.3
    with torch.no_grad():
        found = float(mismatch(graph, stats, other, statistics_distance)[0])
        first = float(mismatch(graph, stats, other, statistics_distance, first=10.0)[0])
    wanted = published_distance(model, other)
    assert found == pytest.approx(sum(wanted), rel=1e-3)
    assert first == pytest.approx(sum(wanted) + 9 * wanted[0], rel=1e-3)


def test_dead_channels_say_nothing_and_unknown_gains_are_one():
    mean, std = torch.tensor([1.0, 5.0]), torch.tensor([2.0, 5.0])
    known = ChannelStats(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0]), torch.tensor([-2.0, 0.0]))
    assert float(statistics_distance(mean, std, known)) == pytest.approx(0.5 + 0.75, abs=1e-5)
    unknown = ChannelStats(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 5.0]))
    assert float(statistics_distance(mean, std, unknown)) == pytest.approx(17**0.5 + 3, abs=1e-5)


def test_variation_and_size_are_norms():
    x = torch.zeros(1, 1, 3, 3)
    x[0, 0, 1, 1] = 2.0
    assert float(size(x)) == pytest.approx(2.0, abs=1e-5)
    assert float(total_variation(x)) == pytest.approx(4 * 8**0.5, abs=1e-4)  # two neighbours in each direction
    assert float(total_variation(torch.ones(2, 3, 4, 4))) == pytest.approx(0, abs=1e-5)


def test_competition_falls_where_the_two_disagree():
    sure = torch.tensor([[30.0, 0.0, 0.0]])
    other = torch.tensor([[0.0, 30.0, 0.0]])
    assert float(competition(sure, sure)) == pytest.approx(1.0, abs=1e-5)
    assert float(competition(sure, other)) < 0.5
    student = sure.clone().requires_grad_(True)
    competition(torch.tensor([[1.0, 0.5, 0.0]]), student).backward()
    assert student.grad is not None and bool(student.grad.abs().sum() > 0)


def test_settings_bring_their_own_numbers():
    graph = trace(*small_network())
    cifar10, imagenet = (Inverted(setting=setting) for setting in ("cifar10", "imagenet"))
    assert steps_of(Inverted(), graph) == 200 and steps_of(Matched(), graph) == 40
    assert steps_of(cifar10, graph) == 2000 and steps_of(imagenet, graph) == 20000
    assert steps_of(Inverted(setting="cifar10", steps=7), graph) == 7
    assert steps_of(Recipe.preset("w4a8").updated(["signal.setting=cifar10"]).signal, graph) == 2000
    assert schedule_of(Inverted(setting="cifar10")) is PUBLISHED["cifar10"].schedule
    assert Recipe(signal={"kind": "inverted", "setting": "cifar10"}).signal.setting == "cifar10"


@pytest.mark.parametrize("setting", PUBLISHED)
def test_the_published_settings_run_and_bring_statistics_closer(setting):
    model, x = small_network()
    settings = [f"signal.setting={setting}", "signal.steps=60", "signal.images=8", "signal.kind=inverted"]
    run = compress(model, Recipe.preset("w8a8").updated(settings), x[:1])
    assert run.images[0].shape == (8, 3, 16, 16)
    if setting == "imagenet":
        return  # there BatchNorm weighs a hundredth
    before, after = run.summary.signal.distance
    assert after < before


@pytest.mark.parametrize("name", THREE_FAST)
def test_the_published_distance_is_finite_on_every_net(name):
    model, inputs = NETS[name]()
    graph = trace(model, inputs)
    stats, _ = fold_batchnorm_(graph)
    if len(inputs) == 1 and stats:
        with torch.no_grad():
            assert bool(torch.isfinite(mismatch(graph, stats, inputs[0], statistics_distance)[0]))


def test_a_competitor_draws_images_to_where_it_errs():
    model, x = small_network()
    graph, stats = folded(model, x)
    torch.manual_seed(3)
    wrong = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 5)).requires_grad_(False)

    def disagreement(weight):
        competitor = Competitor(wrong, weight) if weight else None
        job = signal_job(graph, stats, Inverted(steps=40, class_weight=0.0), competitor=competitor)
        made = match(job, x[:16].clone()).images
        with torch.no_grad():
            return 1 - float(competition(graph(made), wrong(made)))

    assert disagreement(50.0) > 1.5 * disagreement(0.0)


def test_a_loss_that_stays_above_its_start_stops_the_run():
    check_loss([1.0, *[2.0] * 40, 0.9, *[2.0] * 20], 61)  # has been below
    with pytest.raises(
        MatchingError, match=r"the loss is 2 at step 60, above the 1 it started from; take signal.setting=short"
    ):
        check_loss([1.0, *[2.0] * 60], 60)
