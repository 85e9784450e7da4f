"""What layers put out on images stands for BatchNorm's memory where there is none, for equalizing alone."""

import pytest
import torch

from datafree import Recipe, compress
from datafree import graph as g
from datafree.graph.capture import trace
from datafree.recipe import Loader
from datafree.signals import make_signal, measured_stats
from datafree.signals.measured import MARGIN
from nets import NETS, folded_copy

NAME = "depthwise inverted residual"


def signal_of(graph, kind):
    return make_signal(
        graph, {}, Recipe.preset("w8a8").updated([f"signal.kind={kind}", "signal.images=8"]).signal, seed=0
    )


@pytest.mark.parametrize("name", ["no batchnorm at all", "linear after flatten", "keyword spotting"])
def test_statistics_are_those_of_every_layers_output(name):
    model, inputs = NETS[name]()
    graph = trace(folded_copy(model), inputs)
    signal = signal_of(graph, "propagated")
    found = measured_stats(graph, signal)
    assert list(found) == [layer.node for layer in g.layers(graph).values()]
    for node, values in g.walk(graph, signal.inputs):
        if node.name in found:
            rows = g.execute(node, values).detach().transpose(0, 1).flatten(1).double()
            assert torch.allclose(found[node.name].mean.double(), rows.mean(1), atol=1e-4)
            assert torch.allclose(found[node.name].std.double(), rows.std(1, correction=0) * MARGIN, atol=1e-4)


def test_draws_tell_nothing():
    graph = trace(*NETS["no batchnorm at all"]())
    assert measured_stats(graph, signal_of(graph, "gaussian")) == {}


@pytest.mark.parametrize("given", [False, True], ids=["made", "given"])
def test_inputs_of_depthwise_layers_are_balanced_without_batchnorm(given):
    model, inputs = NETS[NAME]()
    recipe = Recipe.preset("w4a8").updated(["signal.images=8", "signal.steps=2"])
    images = (torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)),) if given else None
    run = compress(folded_copy(model), recipe, inputs, images=images)
    kept = compress(model, recipe, inputs, images=images)
    assert run.summary.equalization.depthwise == kept.summary.equalization.depthwise != ()
    with torch.no_grad():
        assert torch.allclose(run.teacher(*inputs), model(*inputs), rtol=1e-3, atol=1e-3)
    assert run.stats == {}, "what was measured is not what BatchNorm remembers"


def test_channels_of_sequences_come_last():
    """A linear layer reads the last dimension of (N, positions, channels)."""
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)).eval()
    x = torch.randn(8, 5, 4, generator=torch.Generator().manual_seed(0))
    graph = trace(net, x)
    found = measured_stats(graph, make_signal(graph, {}, Loader(), seed=0, images=(x,)))
    first, *_ = found.values()
    with torch.no_grad():
        torch.testing.assert_close(first.mean, net[0](x).mean((0, 1)))
    assert [len(stats.mean) for stats in found.values()] == [6, 3]
