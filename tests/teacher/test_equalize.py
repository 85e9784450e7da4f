"""Scales are kept where the predicted rounding error falls, and dropped where it does not."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from datafree import graph as g
from datafree.graph.capture import trace
from datafree.teacher.batchnorm import fold_batchnorm_
from datafree.teacher.equalize import equalize_, row_range


def noise(*shape, seed):
    return 0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def two_linears(first, second):
    model = nn.Sequential(nn.Linear(16, len(first)), nn.ReLU(), nn.Linear(len(first), len(second))).eval()
    model[0].weight.data, model[2].weight.data = first, second
    model[0].bias.data.zero_(), model[2].bias.data.zero_()
    return model


def uneven():
    """A row of small weights, read by a column of large ones: one range for both makes both finer."""
    first, second = 20 * noise(2, 16, seed=0), 20 * noise(40, 2, seed=1)
    return two_linears(first * torch.tensor([[1.0], [0.01]]), second * torch.tensor([0.01, 1.0]))


def spread():
    """A row of many small weights is no quieter than one with a single large weight, and their columns are alike.

    s = sqrt(1 / 0.25) would double the power that enters the second layer, whose range stays 1.
    """
    first, second = noise(2, 16, seed=0), noise(40, 2, seed=1)
    first[0, 0] = second[0, 0] = second[1, 1] = 1.0
    first[1] = 0.25 * first[1].sign()
    return two_linears(first, second)


def equalized(model, mode="foldable", **options):
    x = torch.randn(16, 16, generator=torch.Generator().manual_seed(2))
    graph = trace(model, x)
    stats, _ = fold_batchnorm_(graph)
    before = g.duplicate(graph)
    _, done = equalize_(graph, stats, mode=mode, **options)
    with torch.no_grad():
        assert torch.allclose(graph(x), model(x), rtol=1e-4, atol=1e-5)
    return before, graph, done


def unchanged(before, after):
    return [n for n, layer in g.layers(after).items() if torch.equal(g.weight(before, layer), g.weight(after, layer))]


@torch.no_grad()
def rounding_error(graph):
    """Squared error of the outputs when one layer after the other is rounded to 8 bits, one scale a tensor."""
    x = torch.randn(4096, 16, generator=torch.Generator().manual_seed(3))
    wanted, total = graph(x), 0.0
    for name, layer in g.layers(graph).items():
        weight = g.weight(graph, layer)
        step = weight.abs().max() / 127
        rounded = g.with_weights(graph, {name: torch.round(weight / step) * step})
        total += float((rounded(x) - wanted).square().sum())
    return total


def test_scales_that_lower_the_error_are_kept():
    before, after, done = equalized(uneven())
    assert done.cancelled == ("0", "2") and done.dropped == ()
    assert unchanged(before, after) == []
    assert rounding_error(after) < rounding_error(before) / 10
    _, unguarded, _ = equalized(uneven(), guard=False)
    assert unchanged(unguarded, after) == ["0", "2"], "the whole step was taken"


def test_scales_that_raise_the_error_are_dropped():
    before, after, done = equalized(spread())
    assert done.dropped == ("0",) and done.cancelled == ()
    assert unchanged(before, after) == ["0"], "the rows of the last layer have v_o"
    _, unguarded, asked = equalized(spread(), guard=False)
    assert asked.dropped == () and unchanged(before, unguarded) == []
    assert rounding_error(unguarded) > 1.1 * rounding_error(after), "the prediction was right"


def test_nothing_is_predicted_where_every_row_has_its_own_scale():
    before, after, done = equalized(spread(), rows=False)
    assert done.dropped == () and unchanged(before, after) == []


def test_statistics_of_batchnorm_decide_where_there_are_some():
    """BatchNorm says that the row of many small weights hardly varies: to double its outputs costs nothing."""
    linear, relu, last = spread()
    norm = nn.BatchNorm1d(2)
    norm.running_var = torch.tensor([1.0, 1e-4])
    norm.weight.data = (norm.running_var + norm.eps).sqrt()  # the folded weights are those of `spread`
    _, _, done = equalized(nn.Sequential(linear, norm, relu, last).eval())
    assert done.dropped == () and done.cancelled == ("0", "3")


@pytest.mark.parametrize("mode", ["free", "between", "rows"])
def test_only_foldable_is_guarded(mode):
    _, _, done = equalized(spread(), mode=mode)
    assert done.dropped == ()


def test_between_leaves_nothing_over():
    before, after, done = equalized(uneven(), mode="between")
    assert unchanged(before, after) == [] and done.cancelled == ("0", "2")
    assert done.output_vectors == done.input_vectors == ()


@pytest.mark.parametrize("mode", ["rows", "free"])
def test_rows_of_a_layer_get_one_range(mode):
    before, after, done = equalized(uneven(), mode=mode)
    assert done.input_vectors == () and done.output_vectors == ("0", "2")
    for layer in g.layers(after).values():
        ranges = row_range(g.weight(after, layer))
        torch.testing.assert_close(ranges, ranges.max().expand_as(ranges))
        ranges = row_range(g.weight(before, layer))
        assert float(ranges.min()) < 0.9 * float(ranges.max())


def test_a_nearly_dead_channel_keeps_its_scale():
    """A row of 1e-4 of the layer's range: stretched to it, its bias would be 10,000 times what it was."""
    model = uneven()
    model[0].weight.data[1] *= 1e-4 / 0.01
    for mode in ("free", "foldable", "between", "rows"):
        before, after, _ = equalized(model, mode=mode)
        first = g.layers(after)["0"]
        assert torch.equal(g.weight(after, first)[1], g.weight(before, first)[1])


class Squared(TorchDispatchMode):
    """Weights that were squared."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.square.default, torch.ops.aten.pow.Tensor_Scalar) and args[0].dim() > 1:
            self.count += args[0].numel()
        return func(*args, **(kwargs or {}))


def squared_of_chain(num_layers):
    layers = [(nn.Linear(16, 16), nn.ReLU()) for _ in range(num_layers)]
    model, x = nn.Sequential(*(part for pair in layers for part in pair)).eval(), torch.zeros(2, 16)
    with torch.no_grad():
        for linear, _ in layers:
            linear.weight *= torch.linspace(0.1, 2, 16)[:, None]
    graph = trace(model, x)
    with Squared() as squared:
        equalize_(graph, {}, mode="foldable")
    return squared.count


def test_the_work_grows_as_the_number_of_layers():
    assert 1.5 < squared_of_chain(24) / squared_of_chain(12) < 2.5
