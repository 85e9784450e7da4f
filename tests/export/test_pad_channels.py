"""Channels of depthwise convolutions are filled up with zeros, 16 at a time, where only convolutions see them."""

import numpy as np
import pytest
import torch
from torch import nn

from datafree import Recipe, compress, export_onnx
from nets import Residual, block, head

onnx = pytest.importorskip("onnx")


def exported(folder, model, preset="w8a8"):
    """The check, and by layer its stored weight and groups."""
    recipe = Recipe.preset(preset).updated(["signal.kind=propagated", "signal.images=4"])
    check = export_onnx(compress(model.eval(), recipe, torch.zeros(1, 3, 11, 11)), folder / "net.onnx")
    graph = onnx.load(folder / "net.onnx").graph
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    groups = {n.name: a.i for n in graph.node if n.op_type == "Conv" for a in n.attribute if a.name == "group"}
    return check, {name: (stored[f"{name}.weight"], groups[name]) for name in groups}


def inverted(channels, act=nn.ReLU6):
    return nn.Sequential(
        block(3, channels, 1, act=act), block(channels, channels, groups=channels, act=act),
        block(channels, 5, 1, act=act), head(5),
    )  # fmt: skip


@pytest.mark.parametrize("channels, padded", [(8, 16), (20, 32)])
@pytest.mark.parametrize("preset", ["w8a8", "w8a8-tensor", "w4a4"])
def test_depthwise_layers_between_convolutions_are_filled_up(tmp_path, channels, padded, preset):
    check, layers = exported(tmp_path, inverted(channels), preset)
    assert [w.shape[:2] for w, _ in layers.values()] == [(padded, 3), (padded, 1), (5, padded)]
    assert [groups for _, groups in layers.values()] == [1, padded, 1]
    assert not any(np.any(w.reshape(padded, -1)[channels:]) for w, _ in list(layers.values())[:2])
    assert check.sqnr_db > 100
    assert "stored weights of 3 layers have channels of zeros, 16 at a time, and run faster" in check.notes


@pytest.mark.parametrize(
    "model",
    [
        inverted(16),
        inverted(7),
        inverted(8, nn.SiLU),
        nn.Sequential(block(3, 8), Residual(*block(8, 8, groups=8)), block(8, 5), head(5)),
        nn.Sequential(block(3, 8), block(8, 8, groups=8), head(8)),
        nn.Sequential(block(3, 8), block(8, 16, groups=8), block(16, 5), head(5)),
    ],
    ids=["whole already", "too many missing", "in float", "a sum reads them", "no layer behind", "two for a channel"],
)
def test_other_layers_keep_their_shapes(tmp_path, model):
    check, layers = exported(tmp_path, model)
    assert all(layers[name][0].shape == layer.weight.shape for name, layer in model.named_modules() if name in layers)
    assert not any("channels of zeros" in note for note in check.notes) and check.sqnr_db > 90
