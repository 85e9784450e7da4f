"""The scale of the input where there is no BatchNorm: read off the network's own normalisation, or its first kernel."""

import pytest
import torch
from torch import nn

from datafree.graph.capture import trace
from datafree.recipe import Propagated
from datafree.signals import signal_job
from datafree.signals.first_layer import range_without_batchnorm
from datafree.teacher.batchnorm import fold_batchnorm_
from nets import NETS, conv, head


class Normalised(nn.Module):
    """A network that normalises its own input."""

    def __init__(self, shift, scale):
        super().__init__()
        torch.manual_seed(0)
        self.shift, self.scale = (nn.Buffer(torch.tensor(v).view(1, -1, 1, 1)) for v in (shift, scale))
        self.net = nn.Sequential(nn.ZeroPad2d(1), conv(3, 8, bias=True), nn.ReLU(), head(8))

    def forward(self, x):
        return self.net((x - self.shift) / self.scale)


def scale_of(model, channels=3):
    x = torch.randn(16, channels, 16, 16, generator=torch.Generator().manual_seed(0))
    return range_without_batchnorm(trace(model.eval(), x[:1]), 0, x)


@pytest.mark.parametrize(
    "shift, scale, mean, std, said",
    [
        ([0.0], [255.0], 114.5, 57.6, "pixels in 0..255: the normalisation inside the network"),
        ([127.5], [127.5], 114.5, 57.6, "pixels in 0..255: the normalisation inside the network"),
        ([123.7, 116.3, 103.5], [58.4, 57.1, 57.4], 114.5, 57.6, "pixels in 0..255: the norm"),
        ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 0.449, 0.226, "pixels in 0..1: the normalisation"),
        ([0.0], [58.0], 0.0, 57.6, "pixels in 0..255, their mean subtracted: the normalisation"),
    ],
    ids=["0 to 1", "-1 to 1", "imagenet of 255", "imagenet of 1", "centred"],
)
def test_a_normalisation_inside_the_network_tells_the_scale(shift, scale, mean, std, said):
    found = scale_of(Normalised(shift, scale))
    assert sum(found.mean) / 3 == pytest.approx(mean, rel=0.01, abs=0.01)
    assert sum(found.std) / 3 == pytest.approx(std, rel=0.01)
    assert found.source.startswith(said) and "assumed" not in found.source


def of_pixels(mean, channels=3):
    """A first layer as folding leaves it, of a network that reads pixels of deviation 60."""
    torch.manual_seed(0)
    first = nn.Conv2d(channels, 32, 3)
    with torch.no_grad():
        first.weight.div_(60)
        first.bias.copy_(0.1 * torch.randn(32) - first.weight.sum((1, 2, 3)) * mean)
    return nn.Sequential(first, nn.ReLU(), head(32))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_small_kernel_reads_pixels_and_its_bias_tells_their_mean(channels):
    found, centred = scale_of(of_pixels(120.0, channels), channels), scale_of(of_pixels(0.0, channels), channels)
    assert found.source == "pixels in 0..255: the first layer's kernel, which is small; assumed"
    assert sum(found.mean) / channels == pytest.approx(114.5, rel=0.01) and len(found.mean) == channels
    assert centred.source.startswith("pixels in 0..255, their mean subtracted: ")
    assert centred.mean == (0.0,) * channels and centred.std == found.std


def test_an_ordinary_kernel_tells_nothing():
    assert scale_of(NETS["no batchnorm at all"]()[0]) is None
    assert range_without_batchnorm(trace(*NETS["keyword spotting"]()), 0, torch.randn(4, 5, 40)) is None


def test_a_network_with_batchnorm_is_not_asked():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), head(4)).eval()
    graph = trace(model, torch.randn(1, 3, 16, 16))
    stats, _ = fold_batchnorm_(graph)
    assert signal_job(graph, stats, Propagated(images=8), 0, None).ranges[0].source.startswith("inferred from")
