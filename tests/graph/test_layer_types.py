"""Every kind of layer goes all the way: 2 to 8 bits, zeros, ONNX, a packed file; its channels may go."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from datafree import Recipe, compress, export_onnx, load, save
from datafree import graph as g
from datafree.graph.capture import trace
from datafree.graph.layer_types import LAYER_TYPES
from nets import NETS, block

KINDS = {
    "U-Net": {"conv2d", "conv_transpose2d"},
    "upsampling by every transposed conv": {"conv2d", "conv_transpose2d", "linear"},
    "keyword spotting": {"conv1d", "linear"},
    "1-d autoencoder": {"conv1d", "conv_transpose1d"},
}


def test_every_kind_is_in_a_net():
    assert set().union(*KINDS.values()) == {kind.name for kind in LAYER_TYPES.values()}


@pytest.mark.parametrize("name", KINDS)
def test_every_layer_is_captured_as_its_kind(name):
    model, inputs = NETS[name]()
    graph = trace(model, inputs)
    assert {layer.kind for layer in g.layers(graph).values()} == KINDS[name]
    own = {n for n, m in model.named_modules() if isinstance(m, nn.modules.conv._ConvNd | nn.Linear)}
    assert set(g.layers(graph)) == own
    torch.testing.assert_close(graph(*inputs), model(*inputs))


@pytest.mark.parametrize("name", KINDS)
def test_weights_are_kept_with_output_channels_first(name):
    model, inputs = NETS[name]()
    graph = trace(model, inputs)
    for path, layer in g.layers(graph).items():
        module = model.get_submodule(path)
        channels = (module.weight.shape[0],) if layer.kind == "linear" else (module.out_channels,)
        assert g.weight(graph, layer).shape[0] == channels[0] == len(g.bias(graph, layer))


@pytest.mark.parametrize("per", ["channel", pytest.param("tensor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", KINDS)
def test_errors_fall_by_six_decibels_a_bit(name, per):
    model, inputs = NETS[name]()
    signal = "{kind: gaussian, images: 8}"
    text = "{weights: {bits: %d, per: %s}, first_last: same, solve: {method: nearest}, signal: " + signal + "}"
    errors = {}
    for bits in (2, 4, 8):
        run = compress(model, Recipe.parse(text % (bits, per)), inputs)
        assert len(run.layers) == len(g.layers(run.teacher)) and not run.summary.skipped
        errors[bits] = {layer.name: layer.error_db for layer in run.layers}
    for layer, found in errors[8].items():
        assert found - errors[4][layer] > 15, f"{layer}: {errors[4][layer]:.1f} dB at 4 bits, {found:.1f} at 8"
        assert errors[4][layer] > errors[2][layer]


@pytest.mark.parametrize("preset", ["w4a8", pytest.param("prune50-w8a8", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", KINDS)
def test_files_are_the_student(name, preset, tmp_path):
    model, inputs = NETS[name]()
    run = compress(model, Recipe.preset(preset).updated(["signal.kind=propagated", "signal.images=8"]), inputs)
    check = export_onnx(run, tmp_path / "net.onnx")
    assert check.sqnr_db > 30
    save(run, tmp_path / "net.safetensors")
    assert torch.equal(load(tmp_path / "net.safetensors")(*inputs), run.student(*inputs))


class LinearAsConv(nn.Module):
    """A classifier trained on one pixel and slid over an image."""

    def __init__(self, **options):
        super().__init__()
        self.options, groups = options, options.get("groups", 1)
        self.body, self.fc = block(3, 6), nn.Linear(6 // groups, 4)

    def forward(self, x):
        return F.conv2d(self.body(x), self.fc.weight[:, :, None, None], self.fc.bias, **self.options)


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"stride": 2, "dilation": 2}], ids=str)
def test_a_linear_layer_called_as_a_1x1_convolution_keeps_its_name(options):
    model, x = LinearAsConv(**options).eval(), torch.randn(2, 3, 8, 8)
    run = compress(model, Recipe.preset("w8a8"), x)
    layer = g.layers(run.teacher)["fc"]
    assert (layer.kind, layer.groups) == ("conv2d", options.get("groups", 1))
    with torch.no_grad():
        noise = run.student(x) - model(x)
        assert float(noise.square().mean() / model(x).square().mean()) < 1e-3
