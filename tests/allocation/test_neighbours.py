"""Neighbours for n:4 patterns: less falls out of the cells, and the network computes what it computed."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from datafree import Recipe
from datafree import graph as g
from datafree.allocation.neighbours import dealt, with_neighbours
from datafree.graph.capture import trace
from datafree.recipe import Prune
from datafree.signals import Signal
from datafree.solve import Problem, plan_layers
from datafree.teacher.batchnorm import fold_batchnorm_
from nets import NETS


def kept(score, order, count):
    return float(score[:, order].unflatten(1, (-1, 4)).topk(count, 2).values.sum())


def some_scores(rows, columns):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).square()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_two_cells_are_dealt_as_well_as_they_can_be(count):
    score = some_scores(5, 8)
    best = max(kept(score, list(order), count) for order in permutations(range(8)) if order[0] == 0)
    assert kept(score, dealt(score, count), count) == pytest.approx(best, rel=1e-5)


def test_many_cells_keep_more_than_in_any_of_many_random_orders():
    score, rng = some_scores(20, 40), torch.Generator().manual_seed(1)
    order = dealt(score, 2)
    assert sorted(order.tolist()) == list(range(40))
    assert kept(score, order, 2) > max(kept(score, torch.randperm(40, generator=rng), 2) for _ in range(500))


def test_one_cell_stays_as_it_is():
    assert dealt(some_scores(3, 4), 2).tolist() == [0, 1, 2, 3]


def problem(name, pattern="2:4", **prune):
    model, inputs = NETS[name]()
    graph = trace(model, inputs)
    stats, _ = fold_batchnorm_(graph)
    recipe = Recipe(weights={"bits": None}, activations={"bits": None}, prune={"pattern": pattern, **prune})
    images = torch.randn(16, *inputs[0].shape[1:], generator=torch.Generator().manual_seed(2))
    return Problem(graph, plan_layers(graph, recipe), Signal("loader", (images,), stats), recipe.solve), images


@pytest.mark.parametrize("name", ["depthwise inverted residual", "residual"])
def test_the_network_is_the_same_and_its_channels_are_in_another_order(name):
    asked, images = problem(name)
    found = with_neighbours(asked)
    with torch.no_grad():
        torch.testing.assert_close(found.teacher(images), asked.teacher(images), rtol=1e-4, atol=1e-4)
    weights = lambda p: {n: g.weight(p.teacher, layer) for n, layer in g.layers(p.teacher).items()}  # noqa: E731
    before, after = weights(asked), weights(found)
    changed = [name for name in before if not before[name].equal(after[name])]
    assert changed and all(before[n].flatten().sort().values.equal(after[n].flatten().sort().values) for n in before)


def test_statistics_follow_their_channels():
    asked, _ = problem("depthwise inverted residual")
    found = with_neighbours(asked)
    differs = [n for n, own in asked.signal.stats.items() if not own.mean.equal(found.signal.stats[n].mean)]
    assert differs
    for name in differs:
        assert own_means(asked, name).equal(own_means(found, name))


def own_means(problem, name):
    """A layer's bias beside what BatchNorm remembers of that channel, sorted by the first."""
    node = next(n for n in problem.teacher.graph.nodes if n.name == name)
    bias = g.get_tensor(problem.teacher, f"{g.layer_name(node)}.bias")
    return problem.signal.stats[name].mean[bias.argsort()]


@pytest.mark.parametrize("prune", [{"pattern": "1:2"}, {"pattern": "unstructured", "sparsity": 0.5}])
def test_other_patterns_leave_the_order(prune):
    asked, _ = problem("depthwise inverted residual", **prune)
    assert with_neighbours(asked) is asked


def test_nothing_to_reorder_leaves_the_network():
    asked, _ = problem("chain")
    assert Prune(pattern="2:4").cell == (2, 4)
    assert with_neighbours(asked).plan is asked.plan
