"""Networks as people write them: layouts, parametrizations, hooks, buffers that forward writes."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from datafree import Recipe, compress
from datafree import graph as g
from datafree.graph import CaptureError, trace
from datafree.models import ModelError, plain

RECIPE = Recipe.parse("weights: {bits: 8}\nsignal: {images: 2}\n")
X = torch.randn(3, 3, 10, 10, generator=torch.Generator().manual_seed(0))


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3)).eval()


def old(function, module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own successor
        function(module)


def channels_last(model):
    model.to(memory_format=torch.channels_last)


def weight_norm(model):
    parametrizations.weight_norm(model[0])
    parametrizations.weight_norm(model[3])


def spectral_norm(model):
    parametrizations.spectral_norm(model[0])


def orthogonal(model):
    parametrizations.orthogonal(model[3])


def old_weight_norm(model):
    old(nn.utils.weight_norm, model[0])
    old(nn.utils.weight_norm, model[3])


def old_spectral_norm(model):
    old(nn.utils.spectral_norm, model[0])


def hooks(model):
    model[0].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    model[2].register_forward_hook(lambda module, inputs, output: 2 * output)


def keeps_its_output(model):
    model[3].register_forward_hook(lambda module, inputs, output: setattr(module, "last", {"outputs": [output]}))
    model(X)


WAYS = (
    channels_last, weight_norm, spectral_norm, orthogonal, old_weight_norm, old_spectral_norm, hooks, keeps_its_output,
)  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_the_function_stays_and_layers_keep_their_names(way):
    model = small()
    way(model)
    graph = trace(plain(model), X)
    assert list(g.layers(graph)) == ["0", "3"]
    with torch.no_grad():
        assert torch.allclose(graph(X), model(X), atol=1e-5)


def test_a_parametrized_network_is_compressed():
    model = small()
    old_weight_norm(model)
    run = compress(model, RECIPE, X[:1])
    with torch.no_grad():
        off = (run.student(X) - model(X)).square().mean() / model(X).var()
        assert off < 0.01 and [layer.name for layer in run.layers] == ["0", "3"]


def test_a_lazy_network_is_compressed_once_it_has_weights():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Conv2d(4, 5, 3)).eval()
    with pytest.raises(
        ModelError, match=r"^model\.0 \(LazyConv2d\) is lazy and has no weights yet; call model\(example\) once, and"
    ):
        compress(model, RECIPE, X[:1])
    model(X)
    assert list(g.layers(trace(plain(model), X))) == ["0", "3"]


# Buffers that forward writes


class Writing(nn.Module):
    """Counts its calls and keeps means of what it sees."""

    calls: Tensor
    seen: Tensor

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.how = nn.Conv2d(3, 4, 3), how
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("seen", torch.ones(2, 4))

    def forward(self, x):
        y = self.conv(x)
        if self.how == "counts":
            self.calls += 1
        if self.how == "replaces":
            self.calls = self.calls + 1
        if self.how == "averages":
            self.seen.mul_(0.9).add_(0.1 * y.mean((0, 2, 3)))
        if self.how == "writes a part":
            self.seen[0].copy_(y.mean((0, 2, 3)))
        if self.how == "reads":
            self.calls += 1
            return y * self.calls
        return y.relu_()


@pytest.mark.parametrize("how", ["counts", "replaces", "averages", "writes a part"])
def test_what_is_written_and_not_read_is_left_out(how):
    model = Writing(how).eval()
    graph = trace(model, X)
    assert {name for name, _ in graph.named_buffers()} & {"calls", "seen"} == set()
    with torch.no_grad():
        assert torch.equal(graph(X), model(X)) and torch.equal(graph(X), model(X))


def test_what_is_written_and_read_is_refused():
    with pytest.raises(
        CaptureError,
        match=r"^forward writes into the buffer 'calls' \(aten\.\w+\.\w+\) and reads it, .*if self\.train",
    ):
        trace(Writing("reads").eval(), X)
