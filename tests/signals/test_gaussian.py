"""The paper's signal: clipped moments against quadrature and draws, closed-form inputs against drawn maps."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from datafree import graph as g
from datafree.graph import aten
from datafree.graph.capture import trace
from datafree.records import ChannelStats, Layer
from datafree.signals.gaussian import clipped_moments, closed_form, draw
from jobs import convolution

INF = math.inf
BOUNDS = {"identity": (-INF, INF), "relu": (0.0, INF), "relu6": (0.0, 6.0), "hardtanh": (-1.0, 1.0)}
BOUNDED = pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS)

CHAINS = {
    "batchnorm alone": [],
    "relu": [(aten.relu.default,)],
    "relu6": [(aten.relu6.default,)],
    "hardtanh 0, 6": [(aten.hardtanh.default, 0.0, 6.0)],
    "hardtanh": [(aten.hardtanh.default,)],
    "relu, hardtanh": [(aten.relu.default,), (aten.hardtanh.default, -1.0, 0.5)],
    "hardtanh, relu": [(aten.hardtanh.default, -1.0, 0.5), (aten.relu.default,)],
    "relu6, relu": [(aten.relu6.default,), (aten.relu.default,)],
}
LAYERS = {
    "conv": (6, (3, 3), {}),
    "padding": (6, (3, 3), {"padding": (1, 1)}),
    "uneven padding": (4, (3, 5), {"padding": (0, 3)}),
    "stride": (6, (3, 3), {"stride": (2, 2), "padding": (1, 1)}),
    "dilation": (4, (3, 3), {"dilation": (2, 1), "padding": (2, 0)}),
    "groups": (6, (3, 3), {"groups": 2, "padding": (1, 1)}),
    "depthwise": (6, (3, 3), {"groups": 6, "padding": (1, 1), "stride": (2, 1)}),
    "1x1": (6, (1, 1), {"stride": (2, 2)}),
    "1x1 padded": (6, (1, 1), {"padding": (1, 1)}),
    "linear": (6, None, {}),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def channel_stats(channels, seed=0):
    """No channel is nearly always clipped: products of rare values are far from normal in a sample."""
    centre, spread = torch.rand(2, channels, generator=seeded(seed))
    std = 0.2 + 2 * spread
    return ChannelStats(std * (2.5 * centre - 0.7), std)


def node_after(chain, shape):
    """The last node of placeholder `x` -> chain, as capture would leave it."""
    graph = fx.Graph()
    node = graph.placeholder("x")
    g.annotate(node, shape=shape)
    for target, *arguments in chain:
        node = graph.call_function(target, (node, *arguments))
        g.annotate(node, shape=shape)
    return node


def run_chain(chain, x):
    for target, *arguments in chain:
        x = target(x, *arguments)
    return x


def case(name):
    """Layer, shape of the input for one image."""
    channels, kernel, options = LAYERS[name]
    if kernel is None:
        return Layer("fc", "fc", "linear"), (channels,)
    return convolution(kernel, **options), (channels, 5, 6)


def columns(x, layer):
    """Unfolded inputs, image by image: (N, g, n, positions)."""
    if layer.kind == "linear":
        return x[:, None, :, None]
    u = F.unfold(x, layer.kernel, dilation=layer.dilation, padding=layer.padding, stride=layer.stride)
    return u.unflatten(1, (layer.groups, -1))


def assert_mean_is(samples, expected, sigmas=5.5):
    """`expected` is the mean of the distribution that `samples` (independent along dimension 0) come from.

    Chance passes 5.5 standard errors once in 26 million numbers; up to 3000 numbers are compared at a time.
    """
    samples, expected = samples.double(), expected.double()
    error = (samples.mean(0) - expected).abs()
    allowed = sigmas * samples.std(0) / math.sqrt(len(samples)) + 1e-5 * (1 + expected.abs())
    worst = (error / allowed).max().item()
    assert worst <= 1, f"off by {sigmas * worst:.1f} standard errors"


def by_quadrature(mean, std, low, high):
    z = torch.linspace(-10, 10, 20001, dtype=torch.float64)
    weight = torch.exp(-z * z / 2)
    weight = weight / weight.sum()
    y = (mean + std * z).clamp(low, high)
    first = (weight * y).sum()
    return first, (weight * (y - first).square()).sum()


@BOUNDED
@given(mean=st.floats(-40, 40, width=32), std=st.floats(2**-7, 10, width=32))
@settings(max_examples=30, deadline=None)
def test_clipped_moments_equal_quadrature(bounds, mean, std):
    found = clipped_moments(ChannelStats(torch.tensor([mean]), torch.tensor([std])), *bounds)
    for actual, expected in zip(found, by_quadrature(mean, std, *bounds), strict=True):
        # the grid's step is 1e-3 std, where the clipping bends the integrand
        torch.testing.assert_close(actual[0].double(), expected, rtol=1e-5, atol=1e-6 * max(1, std**2))


@BOUNDED
def test_clipped_moments_equal_draws(bounds):
    stats = channel_stats(7)
    y = draw(stats, (100_000, 7), seeded()).clamp(*bounds)
    mean, variance = clipped_moments(stats, *bounds)
    assert_mean_is(y, mean)
    assert_mean_is((y - mean).square(), variance)


@BOUNDED
@pytest.mark.parametrize("mean", [-20.0, 3.0, 1e4])
def test_channel_without_spread_is_its_clipped_mean(bounds, mean):
    stats = ChannelStats(torch.tensor([mean]), torch.zeros(1))
    first, variance = clipped_moments(stats, *bounds)
    assert first.item() == pytest.approx(min(max(mean, bounds[0]), bounds[1]), abs=1e-6)
    assert 0 <= variance.item() <= 1e-6


def test_bounds_that_meet_leave_one_value():
    bound = 3.0
    first, variance = clipped_moments(ChannelStats(torch.tensor([1.0]), torch.ones(1)), bound, bound)
    assert first.item() == pytest.approx(bound) and variance.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("shape", [(4000, 5), (500, 5, 8), (60, 5, 8, 9)], ids=str)
def test_draws_follow_the_statistics(shape):
    stats = channel_stats(5)
    x = draw(stats, shape, seeded())
    assert x.shape == shape and torch.equal(x, draw(stats, shape, seeded()))
    values = x.transpose(0, 1).flatten(1).T
    assert_mean_is(values, stats.mean)
    assert_mean_is((values - stats.mean).square(), stats.std.square())


def assert_closed_form_is_what_draws_have(layer, shape, chain, num_images):
    stats, side = channel_stats(shape[0]), shape[1:]
    found = closed_form(layer, node_after(chain, (2, *shape)), {"x": stats}, side)
    u = columns(run_chain(chain, draw(stats, (num_images, *shape), seeded(1))), layer).double()
    num_positions = u.shape[-1]
    assert found.num_rows == num_positions
    assert found.mean.shape == u.shape[1:3] and found.cov.shape == (*u.shape[1:3], u.shape[2])
    assert_mean_is(u.mean(-1), found.mean)
    mean = found.mean.double()
    centred = u - mean[:, :, None]
    assert_mean_is(centred @ centred.transpose(2, 3) / num_positions, found.cov)
    assert torch.equal(found.mean, found.student_mean)
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_gptq_form_equals_drawn_maps(name):
    num_images = 20_000 if name == "linear" else 1000
    found = assert_closed_form_is_what_draws_have(*case(name), CHAINS["relu6"], num_images)
    off_diagonal = found.cov - torch.diag_embed(found.variance)
    padded = any(case(name)[0].padding)
    assert padded == bool(off_diagonal.abs().max() > 1e-3)  # pixels are independent, zeros around are not


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_gptq_form_through_every_chain_of_clips(chain):
    layer = convolution((1, 3), padding=(0, 1))
    assert_closed_form_is_what_draws_have(layer, (3, 4, 4), chain, 2000)


@pytest.mark.parametrize(
    "chain",
    [
        [(aten.silu.default,)],
        [(aten.relu.default,), (aten.max_pool2d.default, [2, 2])],
        [(aten.avg_pool2d.default, [1, 1]), (aten.relu.default,)],
    ],
    ids=["silu", "pooling", "pooling before relu"],
)
def test_anything_but_clips_has_no_closed_form(chain):
    layer, shape = case("conv")
    node = node_after(chain, (2, *shape))
    assert closed_form(layer, node, {"x": channel_stats(6)}, shape[1:]) is None


def test_input_without_statistics_has_no_closed_form():
    layer, shape = case("conv")
    node = node_after(CHAINS["relu"], (2, *shape))
    assert closed_form(layer, node, {}, shape[1:]) is None


def test_nearest_statistics_count():
    layer, shape = case("1x1")
    node = node_after(CHAINS["hardtanh, relu"], (2, *shape))
    near, far = channel_stats(6, 1), channel_stats(6, 2)
    found = closed_form(layer, node, {"x": far, node.name: near}, shape[1:])
    torch.testing.assert_close(found.mean[0], near.mean)
    torch.testing.assert_close(found.variance[0], near.std.square())


@pytest.mark.parametrize(
    "make",
    [
        torch.nn.ReLU,
        torch.nn.ReLU6,
        lambda: torch.nn.Hardtanh(0, 6),
        lambda: torch.nn.Hardtanh(0.0, 1.0),
        torch.nn.Hardtanh,
    ],
    ids=["ReLU", "ReLU6", "Hardtanh(0, 6)", "Hardtanh(0., 1.)", "Hardtanh()"],
)
def test_captured_activations_are_understood(make):
    model = torch.nn.Sequential(make(), torch.nn.Conv2d(3, 4, 1)).eval()
    graph = trace(model, torch.zeros(2, 3, 4, 4))
    conv = next(node for node in graph.graph.nodes if node.target is aten.conv2d.default)
    (placeholder,) = (node for node in graph.graph.nodes if node.op == "placeholder")
    stats = channel_stats(3)
    found = closed_form(convolution((1, 1)), conv.args[0], {placeholder.name: stats}, (4, 4))
    y = make()(draw(stats, (50_000, 3), seeded()))
    assert_mean_is(y, found.mean[0])
    assert_mean_is((y - found.mean[0]).square(), found.variance[0])


@pytest.mark.parametrize("length", [4, 7], ids=["as long as channels", "longer than channels"])
def test_linear_layer_across_channels_has_no_closed_form(length):
    node = node_after(CHAINS["relu"], (2, 4, length))
    layer = Layer("fc", "fc", "linear")
    assert closed_form(layer, node, {"x": channel_stats(4)}, ()) is None
