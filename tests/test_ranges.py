"""Grids of tensors between layers: by their values, then by what they do to the layers that read them."""

import pytest
import torch
from torch import nn

from datafree import graph as g
from datafree.affine import fake_quantize
from datafree.capture import trace
from datafree.ranges import activation_grid

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


def test_range_stays_within_the_values():
    x = images() - 0.5
    graph, layers = reader([QUIET, LOUD], x)
    found = activation_grid(graph, x, 4, 0, readers=layers)
    low, high = (float((q - found.zero_point) * found.scale) for q in (found.qmin, found.qmax))
    step = float(found.scale)
    assert low >= float(x.min()) - step and high <= float(x.max()) + step and low < 0 < high
