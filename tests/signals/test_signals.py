"""Signals: exact statistics where they are known, the input's scale read back, values in order and freed in time."""

from __future__ import annotations

import functools
import math
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from datafree import Recipe
from datafree import graph as g
from datafree.execution.room import Files
from datafree.graph.capture import trace
from datafree.recipe import RecipeError, SignalRecipe
from datafree.records import ChannelStats, InputRange
from datafree.signals import SIGNALS, Signal, make_signal, walk_teacher
from datafree.signals.probes import dead_leaves
from datafree.signals.scale import infer_input_range
from datafree.signals.source import batch_statistics, restandardise
from datafree.teacher.batchnorm import fold_batchnorm_
from nets import NETS, block, calibrate_batchnorm_, conv, head

SIDE = 24


def signal(kind, images=4):
    return Recipe.preset("w8a8").updated([f"signal.kind={kind}", f"signal.images={images}"]).signal


@functools.cache
def folded(name):
    model, inputs = NETS[name]()
    graph = trace(model, inputs)
    stats, _ = fold_batchnorm_(graph)
    return graph, stats, inputs


def leaves(count, seed, channels=3):
    generator = torch.Generator().manual_seed(seed)
    return dead_leaves(count, height=SIDE, width=SIDE, channels=channels, generator=generator)


# Statistics


@given(st.integers(0, 2**31), st.integers(1, 5), st.sampled_from([(), (7,), (4, 3)]), st.floats(-30, 30))
@settings(max_examples=40, deadline=None)
def test_restandardised_batches_have_exactly_the_statistics(seed, channels, places, offset):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, channels, *places, generator=generator) * 3 + offset
    stats = ChannelStats(
        torch.randn(channels, generator=generator) * 5, torch.rand(channels, generator=generator) + 0.1
    )
    y = restandardise(x, stats)
    mean, std = batch_statistics(y)
    assert y.shape == x.shape
    assert torch.allclose(mean, stats.mean, atol=2e-4) and torch.allclose(std, stats.std, rtol=1e-3)


def test_restandardising_is_affine_and_rising():
    x = torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    y = restandardise(x, ChannelStats(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5])))
    for c in range(2):
        order = x[:, c].flatten().argsort()
        assert bool((y[:, c].flatten()[order].diff() >= 0).all())
        slope = (y[0, c, 0, 0] - y[1, c, 2, 2]) / (x[0, c, 0, 0] - x[1, c, 2, 2])
        assert torch.allclose(y[:, c], y[0, c, 0, 0] + slope * (x[:, c] - x[0, c, 0, 0]), atol=1e-4)


def test_a_constant_channel_stays_constant_and_finite():
    stats = ChannelStats(torch.tensor([4.0]), torch.tensor([2.0]))
    y = restandardise(torch.full((2, 1, 3, 3), 0.5), stats)
    assert torch.allclose(y, torch.full_like(y, 4.0), atol=1e-3)


@pytest.mark.parametrize("shape", [(8, 5, 9, 7), (8, 5), (4, 5, 6)])
def test_batch_statistics_and_their_gradient_are_those_of_var_mean(shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x[:, 1] = 3.0  # dead
    x[:, 2] = 1e-3 * x[:, 2] + 5  # the mean drowns the deviation
    x.requires_grad_(True)
    var, mean = torch.var_mean(x, dim=[0, *range(2, x.dim())], correction=0)
    wanted, found = (mean, (var + 1e-12).sqrt()), batch_statistics(x)
    weights = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    slopes = [torch.autograd.grad((weights * torch.stack(pair)).sum(), x)[0] for pair in (wanted, found)]
    for a, b in zip((*wanted, slopes[0]), (*found, slopes[1]), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-11)
    for a, b in zip(wanted, batch_statistics(x.detach().float()), strict=True):
        torch.testing.assert_close(b.double(), a, rtol=1e-4, atol=1e-6)


def test_batch_statistics_of_what_lies_in_a_file_are_the_same(tmp_path):
    x = torch.randn(6, 4, 9, 7, generator=torch.Generator().manual_seed(1))
    on_file = Files(tmp_path).empty(x.shape, x.dtype).copy_(x)
    for a, b in zip(batch_statistics(x), batch_statistics(on_file), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-7)


def test_batch_statistics_are_those_of_numpy():
    x = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    mean, std = batch_statistics(x)
    rows = x.transpose(0, 1).flatten(1).numpy()
    assert mean.tolist() == pytest.approx(rows.mean(1).tolist(), abs=1e-6)
    assert std.tolist() == pytest.approx(rows.std(1).tolist(), abs=1e-6)


# The scale of the input


def scaled(mean, std, *, channels=3, first=None):
    """A net trained, so to speak, on dead leaves of this mean and standard deviation."""
    torch.manual_seed(0)
    model = nn.Sequential(*(first or [block(channels, 32, stride=2)]), block(32, 8), head(8))
    shift, scale = (torch.tensor(v).view(1, -1, 1, 1) for v in (mean, std))
    images = leaves(64, seed=1, channels=channels)
    calibrate_batchnorm_(model, images * scale + shift)
    model.eval()
    graph = trace(model, images[:1])
    stats, _ = fold_batchnorm_(graph)
    return graph, stats


RANGES = {
    "pixels": ([120.0], [60.0]),
    "standardised": ([0.0], [1.0]),
    "zero to one": ([0.45], [0.25]),
    "colour": ([124.0, 116.0, 104.0], [58.0]),
}


@functools.cache
def inferred(name):
    graph, stats = scaled(*RANGES[name])
    return infer_input_range(graph, 0, leaves(16, seed=2), stats)


@pytest.mark.parametrize("name", RANGES)
def test_a_known_scale_is_read_back(name):
    mean, (std,) = RANGES[name]
    found = inferred(name)
    assert found.source == "inferred from the first BatchNorm" and len(found.mean) == 3
    assert found.std == pytest.approx((std,), rel=0.15)
    assert found.mean == pytest.approx(mean * (3 // len(mean)), abs=std)


@pytest.mark.parametrize("name", ["pixels", "zero to one", "colour"])
def test_a_known_mean_is_read_back(name):
    mean, _ = RANGES[name]
    assert inferred(name).mean == pytest.approx(mean * (3 // len(mean)), rel=0.15)


def test_a_scale_is_read_through_zero_padding_and_grey():
    first = [
        nn.ZeroPad2d((0, 1, 0, 1)),
        nn.Sequential(nn.Conv2d(1, 32, 3, 2, bias=True), nn.BatchNorm2d(32), nn.ReLU()),
    ]
    graph, stats = scaled([120.0], [60.0], channels=1, first=first)
    found = infer_input_range(graph, 0, leaves(16, seed=2, channels=1), stats)
    assert found.std == pytest.approx((60,), rel=0.15) and found.mean == pytest.approx((120,), abs=60)


def test_dead_channels_do_not_disturb_the_scale():
    torch.manual_seed(0)
    layer = block(3, 32, stride=2)
    with torch.no_grad():
        layer.conv.weight[:8] = 0
    graph, stats = scaled([120.0], [60.0], first=[layer])
    found = infer_input_range(graph, 0, leaves(16, seed=2), stats)
    assert found.std == pytest.approx((60,), rel=0.15) and found.mean == pytest.approx((120,) * 3, abs=60)


@pytest.mark.parametrize("name", ["no batchnorm at all", "batchnorm first", "pre-activation", "several consumers"])
def test_where_nothing_is_known_the_scale_is_assumed(name):
    graph, stats, (x,) = folded(name)
    first = next(iter(g.layers(graph).values()))
    stats = {n: s for n, s in stats.items() if n != first.node}
    found = infer_input_range(graph, 0, x, stats)
    assert (found.mean, found.std) == ((0.0,), (1.0,))
    assert found.source == "assumed, no BatchNorm follows the first layer"


def test_every_input_has_its_own_scale():
    torch.manual_seed(0)
    model = NETS["two inputs"]()[0]
    calibrate_batchnorm_(model, leaves(32, 1) * 60 + 120, leaves(32, 2, channels=1) * 0.1)
    model.eval()
    graph = trace(model, (torch.zeros(1, 3, SIDE, SIDE), torch.zeros(1, 1, SIDE, SIDE)))
    stats, _ = fold_batchnorm_(graph)
    source = make_signal(graph, stats, signal("propagated", images=16), seed=0)
    assert source.input_range.std == pytest.approx((60,), rel=0.3)
    colour, depth = source.inputs
    assert (colour.shape, depth.shape) == ((16, 3, SIDE, SIDE), (16, 1, SIDE, SIDE))
    assert float(colour.std()) == pytest.approx(60, rel=0.4) and float(depth.std()) == pytest.approx(0.1, rel=0.4)


# Making signals


@pytest.mark.parametrize("kind", ["propagated", "gaussian"])
def test_images_are_made_in_the_range_given(kind):
    graph, stats, _ = folded("chain")
    given = InputRange((10.0, 20.0, 30.0), (5.0,), "a test")
    source = make_signal(graph, stats, signal(kind, images=32), seed=0, input_range=given)
    assert source.input_range == given and source.kind == kind and source.num_images == 32
    (x,) = source.inputs
    assert x.shape == (32, 3, 16, 16)
    mean, std = batch_statistics(x)
    assert mean.tolist() == pytest.approx([10, 20, 30], abs=2.5) and std.tolist() == pytest.approx([5] * 3, rel=0.3)


def test_a_seed_fixes_the_images_and_another_changes_them():
    graph, stats, _ = folded("chain")
    first, again, other = (make_signal(graph, stats, signal("propagated"), seed=s).inputs[0] for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_loader_gives_the_images_as_they_are():
    graph, stats, (x,) = folded("chain")
    source = make_signal(graph, stats, signal("loader"), seed=0, images=(x,))
    assert torch.equal(source.inputs[0], x) and str(source.input_range) == "the images given"
    (_, value), *_ = walk_teacher(graph, source)
    assert torch.equal(value, x)
    with pytest.raises(ValueError, match="'loader' but no images were given"):
        make_signal(graph, stats, signal("loader"), seed=0)


def test_every_kind_of_the_recipe_has_a_row():
    assert set(SignalRecipe.kinds.values()) == set(SIGNALS)


def test_a_kind_without_a_row_is_refused():
    graph, stats, _ = folded("chain")
    with pytest.raises(RecipeError, match=r"signal.kind 'x' has no row; add SIGNALS\[SignalRecipe\] = SignalKind"):
        make_signal(graph, stats, SignalRecipe(kind="x"), seed=0)


def test_given_images_are_restandardised_on_request():
    graph, stats, (x,) = folded("residual")
    wanted = signal("loader").model_copy(update={"restandardise": True})
    source = make_signal(graph, stats, wanted, seed=0, images=(x,))
    assert torch.equal(source.inputs[0], x)
    for node, value in walk_teacher(graph, source):
        if node.name in stats:
            assert torch.allclose(batch_statistics(value)[0], stats[node.name].mean, atol=1e-4)


def test_the_papers_signal_draws_its_inputs():
    graph, stats, _ = folded("chain")
    given = InputRange((0.0,), (1.0,), "a test")
    source = make_signal(graph, stats, signal("gaussian"), seed=0, input_range=given)
    (drawn,) = source.input_stats.values()
    assert (drawn.mean.tolist(), drawn.std.tolist(), source.pooling) == ([0.0] * 3, [1.0] * 3, "ignored")


# Flow


def plainly(graph, inputs):
    """Every node's value, from an interpreter that frees nothing."""
    values = {}

    class Notes(torch.fx.Interpreter):
        def run_node(self, node):
            values[node.name] = super().run_node(node)
            return values[node.name]

    with torch.no_grad():
        Notes(graph, garbage_collect_values=False).run(*inputs)
    return values


@pytest.mark.parametrize("name", ["residual", "channel shuffle and split", "two inputs"])
def test_flow_yields_all_nodes_in_order_with_their_values(name):
    graph, stats, inputs = folded(name)
    wanted = plainly(graph, inputs)
    names = []
    for node, value in walk_teacher(graph, Signal("loader", inputs, stats, "keep")):
        names.append(node.name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, wanted[node.name]), node
    nodes = [n for n in graph.graph.nodes if n.op in ("placeholder", "call_function")]
    assert names == [n.name for n in nodes]
    assert [n.op for n in nodes[: len(inputs)]] == ["placeholder"] * len(inputs)


def test_flow_has_the_statistics_wherever_they_are_known():
    graph, stats, (x,) = folded("residual")
    x = torch.randn(8, *x.shape[1:], generator=torch.Generator().manual_seed(0))
    seen = 0
    for node, value in walk_teacher(graph, Signal("propagated", (x,), stats, "restandardise")):
        if node.name in stats:
            mean, std = batch_statistics(value)
            assert torch.allclose(mean, stats[node.name].mean, atol=1e-4)
            assert torch.allclose(std, stats[node.name].std, rtol=1e-3)
            seen += 1
    assert seen == len(stats) == 5


def test_what_follows_reads_the_restandardised_value():
    graph, stats, (x,) = folded("chain")
    values = {n.name: v for n, v in walk_teacher(graph, Signal("propagated", (x,), stats, "restandardise"))}
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten.relu.default:
            assert torch.equal(values[node.name], values[node.args[0].name].relu())


def test_draws_have_the_statistics_within_their_standard_errors():
    graph, stats, (x,) = folded("residual")
    source = Signal("gaussian", (x[:1].expand(64, -1, -1, -1),), stats, "draw", seed=3)
    assert source.draws
    count = 64 * 16 * 16
    for node, value in walk_teacher(graph, source):
        if node.name in stats:
            wanted = stats[node.name]
            mean, std = batch_statistics(value)
            assert bool(((mean - wanted.mean).abs() < 5 * wanted.std / math.sqrt(count)).all())
            assert bool(((std / wanted.std - 1).abs() < 5 / math.sqrt(2 * count)).all())
            neighbours = (value[..., 1:] - mean.view(1, -1, 1, 1)) * (value[..., :-1] - mean.view(1, -1, 1, 1))
            assert bool((neighbours.mean((0, 2, 3)).abs() < 5 * wanted.std**2 / math.sqrt(count - 64 * 16)).all())


@pytest.mark.parametrize("at", ["draw", "restandardise"])
def test_flow_gives_the_same_bits_again(at):
    graph, stats, inputs = folded("residual")
    source = Signal("any", inputs, stats, at, seed=5)
    for (_, a), (_, b) in zip(walk_teacher(graph, source), walk_teacher(graph, source), strict=True):
        assert torch.equal(a, b)


def test_flow_frees_what_is_no_longer_needed():
    """Nine convolutions in a row: the node's value, its input, and what the loop still holds."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(conv(3, 3), nn.ReLU()) for _ in range(9)]).eval()
    x = torch.randn(2, 3, 8, 8)
    graph = trace(model, x)
    living, most = [], 0
    for _, value in walk_teacher(graph, Signal("loader", (x,))):
        living = [r for r in living if r() is not None] + [weakref.ref(value)]
        most = max(most, len(living))
    assert most <= 3
