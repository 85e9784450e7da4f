"""Grids of tensors between layers: by their values, then by what they do to the layers that read them."""

import pytest
import torch
from torch import nn

from datafree import Recipe, compress, load_model
from datafree import graph as g
from datafree.execution.room import Files
from datafree.graph.capture import trace
from datafree.quantization.affine import fake_quantize
from datafree.records import InputRange
from datafree.solve.activation_grids import RESERVE, activation_grid, input_grid, output_grid
from nets import NETS

LOUD, QUIET = 8.0, 0.01  # weights of a reader that listens to one channel


def reader(weights, x):
    """A graph whose only layer, 1x1, reads every channel with the weight given, and that layer."""
    conv = nn.Conv2d(len(weights), 1, 1)
    conv.weight.data = torch.tensor(weights).view(1, -1, 1, 1)
    graph = trace(nn.Sequential(conv).eval(), x[:1])
    return graph, tuple(g.layers(graph).values())


def images(seed=0):
    """A channel of small values, and one with rare large ones."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(16, 2, 8, 8, generator=generator)
    x[:, 1] *= torch.where(torch.rand(16, 8, 8, generator=generator) > 0.97, 12.0, 1.0)
    return x


def output_error(graph, layer, x, qparams):
    weight = g.weight(graph, layer)
    return float(nn.functional.conv2d(fake_quantize(x, qparams) - x, weight).var(correction=0))


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_range_follows_the_layer_that_reads(bits):
    x = images()
    tops = []
    for weights in ([LOUD, QUIET], [QUIET, LOUD]):
        graph, layers = reader(weights, x)
        alone = activation_grid(graph, x, bits, 0)
        read = activation_grid(graph, x, bits, 0, readers=layers)
        assert output_error(graph, layers[0], x, read) <= 1.02 * output_error(graph, layers[0], x, alone)
        tops.append(float((read.qmax - read.zero_point) * read.scale))
        assert read.scale.shape == alone.scale.shape == (1,) and int(read.zero_point) == 0
    assert tops[0] < tops[1], "a layer that listens to the small channel wants a smaller range"


def test_eight_bits_and_tensors_no_layer_reads_are_clipped_by_their_values():
    x = images()
    graph, layers = reader([LOUD, QUIET], x)
    assert torch.equal(activation_grid(graph, x, 8, 0).scale, activation_grid(graph, x, 8, 0, readers=layers).scale)


def test_ends_are_clipped_apart_where_the_layer_that_reads_hears_only_one():
    """A channel of fine values around 0 that is read, and rare large positive ones that are not."""
    x = images()
    x[:, 0] = 3 * (x[:, 0] - 0.8)
    graph, layers = reader([LOUD, QUIET], x)
    grids = [activation_grid(graph, x, 4, 0, readers=who) for who in ((), layers)]
    ends = [[float((q - found.zero_point) * found.scale) for q in (found.qmin, found.qmax)] for found in grids]
    assert ends[1][0] <= ends[0][0] and ends[1][0] == pytest.approx(float(x.min()), rel=0.2), "heard: it stays"
    assert ends[1][1] < 0.6 * ends[0][1], "not heard: it is cut"


def test_range_stays_within_the_values():
    x = images() - 0.5
    graph, layers = reader([QUIET, LOUD], x)
    found = activation_grid(graph, x, 4, 0, readers=layers)
    low, high = (float((q - found.zero_point) * found.scale) for q in (found.qmin, found.qmax))
    step = float(found.scale)
    assert low >= float(x.min()) - step and high <= float(x.max()) + step and low <= 0 < high


@pytest.mark.parametrize("sequential", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_input_of_the_network_has_room_for_what_a_real_one_may_hold(sequential):
    """Images made here are paler than real ones; the grid reaches 3.5 deviations to both sides of the mean."""
    model, inputs = NETS["chain"]()
    recipe = Recipe.preset("w8a8").updated(["signal.images=4", f"solve.sequential={str(sequential).lower()}"])
    chosen = InputRange((0.5,), (2.0,), "test")
    run = compress(model, recipe, inputs, on_range=chosen)
    quantize = next(n for n in run.student.graph.nodes if "quantize_per_tensor" in str(n.target))
    scale, zero_point = quantize.args[1:3]
    assert (0 - zero_point) * scale == pytest.approx(0.5 - 7, abs=scale) and 255 * scale == pytest.approx(14, rel=1e-3)
    assert (grid := input_grid((-6.5, 7.5), 8)).bits == 8 and float(grid.scale) == pytest.approx(14 / 255)


@pytest.mark.slow
def test_images_given_are_no_reason_to_clip_real_ones_but_real_ones_are_believed():
    model, example = load_model("demo")
    pale = (torch.full_like(example, 0.01).repeat(4, 1, 1, 1),)
    scales = []
    for kind in ("inverted", "loader"):
        recipe = Recipe.preset("w8a8").updated([f"signal.kind={kind}"])
        run = compress(model, recipe, example, images=pale, on_range=InputRange((0.0,), (1.0,), "test"))
        quantize = next(n for n in run.student.graph.nodes if "quantize_per_tensor" in str(n.target))
        scales.append(quantize.args[1])
    assert scales[0] == pytest.approx(7 / 255, rel=1e-3) and scales[1] < 1e-4


@pytest.mark.parametrize("symmetric", [False, True])
def test_outputs_are_not_clipped_and_have_a_reserve(symmetric):
    x = images() - 1
    grid = output_grid(x, 8, symmetric=symmetric)
    low, high = (float((q - grid.zero_point) * grid.scale) for q in (grid.qmin, grid.qmax))
    assert low <= RESERVE * float(x.min()) + float(grid.scale) and high >= RESERVE * float(x.max()) - float(grid.scale)
    clipped = activation_grid(reader([LOUD, QUIET], x)[0], x, 8, 0)
    assert float(grid.scale) > float(clipped.scale)


@pytest.mark.parametrize("bits", [4, 8])
def test_what_lies_in_a_file_has_the_same_grid(bits, tmp_path):
    x = images()
    on_file = Files(tmp_path).empty(x.shape, x.dtype).copy_(x)
    graph, layers = reader([LOUD, QUIET], x)
    wanted, found = (activation_grid(graph, of, bits, 0, readers=layers) for of in (x, on_file))
    assert torch.equal(wanted.scale, found.scale) and torch.equal(wanted.zero_point, found.zero_point)
    assert torch.equal(output_grid(x, bits).scale, output_grid(on_file, bits).scale)
