"""The paper's inputs of one layer: drawn afresh without a map, and alike to maps that are drawn and executed."""

import itertools
import math
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

from datafree import Recipe
from datafree import graph as g
from datafree.graph.capture import trace
from datafree.signals import make_signal
from datafree.signals.draws import layer_draws
from datafree.signals.source import walk_teacher
from datafree.solve.plan import plan_layers
from datafree.solve.problem import Problem
from datafree.solve.rounding.straight_through import straight_through
from datafree.solve.solve_layer import layer_jobs
from datafree.solve.weight_grids import weight_grid
from datafree.teacher.batchnorm import fold_batchnorm_
from nets import NETS, block, head

ROWS = 8192


class Pooled(nn.Module):
    """Average pooling before a convolution, global pooling before a linear layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = block(3, 8, act=nn.ReLU6), block(8, 6), head(6)

    def forward(self, x):
        return self.head(self.second(nn.functional.avg_pool2d(self.first(x), 2)))


def signal_of(model, inputs, *, pooling="ignored", images=64):
    graph = trace(model, inputs)
    stats, _ = fold_batchnorm_(graph)
    recipe = Recipe(signal={"kind": "gaussian", "pooling": pooling, "images": images})
    return graph, make_signal(graph, stats, recipe.signal, seed=0)


def pooled(pooling="ignored"):
    torch.manual_seed(0)
    return signal_of(Pooled().eval(), torch.randn(2, 3, 16, 16), pooling=pooling)


def drawn(graph, source, name):
    layer = g.layers(graph)[name]
    node = g.node_of(graph, layer.node).args[0]
    return layer_draws(layer, node, source.drawn)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rows_of_maps(graph, source, name):
    """The layer's inputs, unfolded from maps that were drawn and executed."""
    layer = g.layers(graph)[name]
    node = g.node_of(graph, layer.node)
    x = next(value for n, value in walk_teacher(graph, source) if n is node.args[0])
    return g.unfold(x, layer, g.positions(x.shape, layer, ROWS, 1))


def assert_alike(a, b):
    """Means and deviations of two samples (rows, g, n) differ by chance alone: five standard errors."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt() + 1e-6
    assert bool(((a.mean(0) - b.mean(0)).abs() < 5.5 * error).all())
    a, b = (a - a.mean(0)).square(), (b - b.mean(0)).square()
    error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt() + 1e-6
    assert bool(((a.mean(0) - b.mean(0)).abs() < 5.5 * error).all())


CASES = {
    "chain": ("0.conv", "1.conv"),  # the network's input; a stride
    "residual": ("1.0.conv", "3.1.conv", "5.2"),  # sums, global pooling
    "concat": ("1.1.conv", "2.1.conv", "3.conv"),
    "depthwise inverted residual": ("1.1.conv", "1.2.conv"),
    "grouped": ("1.conv",),
}


@pytest.mark.parametrize("net, name", [(net, name) for net, names in CASES.items() for name in names])
def test_draws_are_those_of_executed_maps(net, name):
    graph, source = signal_of(*NETS[net]())
    draws = drawn(graph, source, name)
    rows = draws(ROWS, seeded())
    assert rows.shape[1:] == rows_of_maps(graph, source, name).shape[1:]
    assert_alike(rows, rows_of_maps(graph, source, name))
    other = draws(ROWS, seeded(1))
    assert not torch.equal(rows, other) and torch.equal(rows, draws(ROWS, seeded()))


def test_padding_is_zero_as_often_as_in_the_map():
    graph, source = signal_of(*NETS["chain"]())
    rows = drawn(graph, source, "0.conv")(ROWS, seeded())
    corner = rows.view(ROWS, 3, 9)[:, 0, 0] == 0  # outside the image in the first row and the first column
    share = 1 - (15 / 16) ** 2
    assert abs(float(corner.float().mean()) - share) < 5 * math.sqrt(share / ROWS)


def test_draws_travel_to_another_process():
    graph, source = signal_of(*NETS["concat"]())
    draws = drawn(graph, source, "2.1.conv")
    assert torch.equal(pickle.loads(pickle.dumps(draws))(16, seeded()), draws(16, seeded()))


@pytest.mark.parametrize(
    "net, name", [("squeeze and excitation", "last.conv"), ("channel shuffle and split", "last.conv")]
)
def test_what_depends_on_more_than_one_pixel_is_not_drawn(net, name):
    graph, source = signal_of(*NETS[net]())
    assert drawn(graph, source, name) is None
    assert torch.isfinite(rows_of_maps(graph, source, name)).all(), "it is executed instead"


# ---- pooling


def test_statistics_pass_over_pooling():
    """The paper: what average pooling does to them is ignored. Executed on independent pixels, it shrinks them."""
    graph, source = pooled()
    executed = pooled("executed")[1]
    for name, most in (("second.conv", 1 / 2), ("head.2", 1 / 20)):  # means of 4 and of 64 pixels
        before, after = (rows_of_maps(graph, s, name).var(0).mean() for s in (source, executed))
        assert float(after / before) < most
        assert_alike(drawn(graph, source, name)(ROWS, seeded()), rows_of_maps(graph, source, name))


def test_a_map_behind_pooling_has_the_shape_that_is_read():
    graph, source = pooled()
    shapes = {n.name: tuple(v.shape[1:]) for n, v in walk_teacher(graph, source) if "pool" in n.name}
    wanted = {n.name: g.shape(n)[1:] for n in graph.graph.nodes if "pool" in n.name}
    assert shapes == wanted and len(wanted) == 2


def test_a_map_larger_than_what_it_was_made_from_is_filled():
    torch.manual_seed(0)
    model = nn.Sequential(block(3, 4), nn.Upsample(scale_factor=3), block(4, 4), head(4)).eval()
    graph, source = signal_of(model, torch.randn(1, 3, 4, 4))
    assert_alike(drawn(graph, source, "2.conv")(ROWS, seeded()), rows_of_maps(graph, source, "2.conv"))


# ---- training on them


def jobs_of(model, inputs, **signal):
    graph, source = signal_of(model, inputs, images=4)
    recipe = Recipe(solve={"method": "straight_through", "steps": 40, "rows": 64}, weights={"bits": 4, "per": "tensor"})
    return {job.name: job for job in layer_jobs(Problem(graph, plan_layers(graph, recipe), source, recipe.solve), {})}


def test_every_step_of_training_draws_others():
    job = jobs_of(*NETS["chain"]())["1.conv"]
    assert job.rows is None and job.draws is not None
    seen = []

    def watched(count, generator):
        seen.append(job.draws(count, generator))
        return seen[-1]

    qparams = weight_grid(job)
    trained = straight_through(replace(job, draws=watched), qparams)
    assert len(seen) == 1 + 40 and torch.equal(trained, straight_through(job, qparams)), "the same seed draws the same"
    assert len(seen[0]) > len(seen[1]) == 64, "those held out, and those of each step"
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(seen[1:41]))


def test_layers_behind_a_gate_train_on_maps():
    jobs = jobs_of(*NETS["squeeze and excitation"]())
    assert jobs["last.conv"].draws is None and jobs["last.conv"].rows is not None
    assert jobs["stem.conv"].draws is not None
