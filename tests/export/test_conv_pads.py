"""Zeros before a convolution become its own padding in the file; what else is padded stays."""

from collections import Counter

import pytest
import torch
from torch import nn

from datafree import Recipe, compress, export_onnx
from nets import block, conv, head

onnx = pytest.importorskip("onnx")
NEAR = 30  # decibel: another function is at 10, one integer that is rounded otherwise at 40


def kinds_in(folder, model, preset="w8a8", side=11, **options):
    """Kinds of nodes in the file, and how near it is to the student."""
    recipe = Recipe.preset(preset).updated(["signal.kind=propagated", "signal.images=4"])
    run = compress(model.eval(), recipe, torch.zeros(1, 3, side, side))
    check = export_onnx(run, folder / "net.onnx", **options)
    return Counter(node.op_type for node in onnx.load(folder / "net.onnx").graph.node), check


class Padded(nn.Module):
    def __init__(self, *pads, readers=1):
        super().__init__()
        self.first, self.pads = block(3, 4), nn.ModuleList(pads)
        self.branches = nn.ModuleList(conv(4, 4, stride=2) for _ in range(readers))
        self.last = head(4)

    def forward(self, x):
        x = self.first(x)
        for pad in self.pads:
            x = pad(x)
        return self.last(sum(branch(x) for branch in self.branches))


@pytest.mark.parametrize("preset, readers", [("w8a8", 1), ("w4a4", 2), ("prune50", 1)])
def test_zeros_before_convolutions_go_into_them(tmp_path, preset, readers):
    kinds, check = kinds_in(tmp_path, Padded(nn.ZeroPad2d((0, 1, 2, 3)), readers=readers), preset)
    assert "Pad" not in kinds and check.sqnr_db > NEAR


def test_zeros_around_the_image_go_into_the_first_convolution_and_its_blocks(tmp_path):
    model = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 4, 3, 2, bias=False), nn.BatchNorm2d(4), head(4))
    kinds, check = kinds_in(tmp_path, model, side=12)
    assert "Pad" not in kinds and kinds["SpaceToDepth"] == 1 and check.sqnr_db > NEAR


@pytest.mark.parametrize(
    "pads",
    [(nn.ConstantPad2d(1, 0.5),), (nn.ReflectionPad2d(1),), (nn.ZeroPad2d(-1),), (nn.ZeroPad2d(1), nn.MaxPool2d(2))],
    ids=["another value", "reflection", "cropping", "pooling reads it"],
)
@pytest.mark.parametrize("preset", ["w8a8", "prune50"])
def test_other_paddings_stay(tmp_path, pads, preset):
    kinds, check = kinds_in(tmp_path, Padded(*pads), preset)
    assert kinds["Pad"] == 1 and check.sqnr_db > NEAR
