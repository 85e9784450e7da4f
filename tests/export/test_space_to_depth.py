"""The first convolution on blocks of pixels: another graph, the same integers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from datafree import Recipe, compress
from nets import block, head

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from datafree.export.onnx.export import export_onnx  # noqa: E402
from datafree.export.onnx.onnxruntime import run_file, session  # noqa: E402
from datafree.export.onnx.space_to_depth import fold_pixels  # noqa: E402
from datafree.export.onnx.translate import translate  # noqa: E402

CHEAP = Recipe.preset("w8a8").updated(["signal.kind=propagated", "signal.images=4"])


def network(first, channels=3, side=12):
    torch.manual_seed(0)
    model = nn.Sequential(first, nn.BatchNorm2d(6), nn.ReLU(), block(6, 6), head(6)).eval()
    return compress(model, CHEAP, torch.zeros(1, channels, side, side))


def outputs(model, path, x):
    onnx.save(model, path)
    return run_file(session(path), (x,))[0]


EVERY = [(kernel, padding) for kernel in (3, 7, (3, 5), 4, 5) for padding in (0, 3, 1, 2, (1, 2))]
FAST = ((3, 3), (7, 0), ((3, 5), 3))


@pytest.mark.parametrize(
    "kernel, padding", [c if c in FAST else pytest.param(*c, marks=pytest.mark.slow) for c in EVERY]
)
def test_the_same_integers(kernel, padding, tmp_path):
    run = network(nn.Conv2d(3, 6, kernel, 2, padding, bias=False))
    plain, folded = translate(run.student, opset=21), translate(run.student, opset=21)
    assert fold_pixels(folded) == "0"
    assert "SpaceToDepth" in {n.op_type for n in folded.graph.node}
    weight = next(t for t in folded.graph.initializer if t.name == "0.weight")
    assert weight.dims[1] == 12
    x = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    assert torch.equal(outputs(folded, tmp_path / "folded.onnx", x), outputs(plain, tmp_path / "plain.onnx", x))


@pytest.mark.parametrize(
    "first, channels, side",
    [
        (nn.Conv2d(3, 6, 3, 1, 1, bias=False), 3, 12),
        (nn.Conv2d(3, 6, 3, 2, 1, bias=False), 3, 13),
        (nn.Conv2d(8, 6, 3, 2, 1, bias=False), 8, 12),
        (nn.Conv2d(3, 6, 2, 2, bias=False), 3, 12),
        (nn.Conv2d(3, 6, 3, 2, 2, dilation=2, bias=False), 3, 12),
        (nn.Conv2d(3, 6, 3, 2, 1, groups=3, bias=False), 3, 12),
    ],
    ids=["stride 1", "odd side", "many channels", "one block", "dilated", "grouped"],
)
def test_others_stay(first, channels, side):
    model = translate(network(first, channels, side).student, opset=21)
    before = model.SerializeToString()
    assert fold_pixels(model) is None and model.SerializeToString() == before


def test_the_file_says_so_and_keeps_its_check(tmp_path):
    check = export_onnx(network(nn.Conv2d(3, 6, 3, 2, 1, bias=False)), tmp_path / "net.onnx", opset=13)
    assert check.agreement == 100 and check.float_nodes == ()
    assert "SpaceToDepth" in str(onnx.load(tmp_path / "net.onnx"))
    assert any("0 reads blocks of 2x2 pixels" in note for note in check.notes)
    export_onnx(network(nn.Conv2d(3, 6, 3, 2, 1, bias=False)), tmp_path / "plain.onnx", space_to_depth=False)
    assert "SpaceToDepth" not in str(onnx.load(tmp_path / "plain.onnx"))
