"""Layers whose channels would be lost are solved otherwise, and the summary says so: one network a cause."""

import math

import pytest
import torch
from torch import nn

from datafree import Recipe, Run, compress, export_onnx
from datafree.app.sentences import losses
from datafree.solve.mending import ALIVE, channel_db, floor_db
from nets import calibrate_batchnorm_

PLAIN = ["equalize=off", "solve.method=nearest", "signal.images=8", "first_last=same"]
ONE_SCALE = "a scale for each channel"
IDLE = "weights on inputs that hardly move left out"


class Uneven(nn.Module):
    """The rows of `second` differ by as much as they are told to; BatchNorm makes up for it."""

    def __init__(self, spread=1.0, idle=0.0):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.ReLU())
        self.last = nn.Linear(8, 5)
        with torch.no_grad():
            self.second[0].weight[1:] *= 1 / spread
            self.last.weight[:, 1:] *= spread
            if idle:
                self.first[0].weight[0] *= 1e-6
                self.second[0].weight[:, 0] = idle

    def forward(self, x):
        return self.last(self.second(self.first(x)).mean((2, 3)))


def compressed(settings, **options):
    torch.manual_seed(0)
    model, x = Uneven(**options), torch.randn(64, 3, 16, 16)
    calibrate_batchnorm_(model, x)
    if options.get("idle"):
        model.first[1].weight.data[0], model.first[1].bias.data[0] = 1e-5, 1.0
    return compress(model.eval(), Recipe.preset("w8a8").updated([*PLAIN, *settings]), x[:1])


def layer(run, name="second.0"):
    return next(layer for layer in run.layers if layer.name == name)


def test_even_rows_are_left_alone():
    run = compressed(["weights.per=tensor"])
    assert run.summary.mended == () and all(not found.remedy and found.channel_db > 30 for found in run.layers)
    assert list(losses(run.summary)) == []


def test_rows_too_small_for_one_scale_get_a_scale_each():
    run = compressed(["weights.per=tensor"], spread=1e3)
    (mended,) = run.summary.mended
    assert (mended.name, mended.remedy) == ("second.0", ONE_SCALE)
    assert mended.as_asked_db < 2 < 30 < mended.channel_db
    found = layer(run)
    assert len(found.weight_qparams.scale) == 8 and found.bits == 8
    assert found.error_db > 30, "what the sum over channels says"
    said = next(losses(run.summary))
    assert said.startswith("second.0: as it was asked for, ") and ONE_SCALE in said


def test_a_weight_on_an_input_that_hardly_moves_no_longer_takes_the_range():
    run = compressed(["solve.clip=false"], idle=30.0)
    (mended,) = run.summary.mended
    assert mended.remedy == IDLE and mended.as_asked_db < 5 < 30 < mended.channel_db
    with torch.no_grad():
        x = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        wanted, found = run.teacher(x), run.student(x)
        assert float((found - wanted).var() / wanted.var()) < 1e-2


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_too_few_bits_become_eight(bits):
    """A row of one large weight and many small ones, all of which matter."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 4, 1, bias=False), nn.Flatten(), nn.Linear(4 * 64, 5))
    with torch.no_grad():
        model[0].weight[:, 0] = 40 * model[0].weight[:, 1:].abs().amax()
    scale = torch.ones(16)
    scale[0] = 0.001
    x = torch.randn(32, 16, 8, 8) * scale[:, None, None]
    settings = [f"weights.bits={bits}", "activations.bits=null", "signal.kind=loader", "solve.clip=false"]
    run = compress(
        model.eval(), Recipe().updated(["first_last=same", "solve.method=nearest", *settings]), x, images=(x,)
    )
    found = layer(run, "0")
    assert found.remedy and found.channel_db >= floor_db(found.bits if found.weight_qparams else None)
    assert found.as_asked_db < floor_db(bits)


def test_a_mended_layer_is_saved_exported_and_read_back(tmp_path):
    run = compressed(["weights.per=tensor"], spread=1e3)
    run.save(tmp_path / "run")
    assert Run.load(tmp_path / "run").summary == run.summary
    check = export_onnx(run, tmp_path / "net.onnx")
    assert check.sqnr_db > 30
    assert any(note.startswith("second.0 was solved with a scale for each channel") for note in check.notes)


def test_the_mean_over_channels_counts_each_alike_and_none_that_is_dead():
    power = torch.tensor([[1.0, 1e-2, 1e-2 * ALIVE / 10]])
    assert channel_db(torch.tensor([[1e-3, 1e-5, 1.0]]), power) == pytest.approx(30)
    assert channel_db(torch.tensor([[0.0, 1.0, 0.0]]), power) == pytest.approx(-10 * math.log10(0.5))
    most_dead = torch.tensor([[1.0, 1e-2, *[1e-12] * 8]])
    assert channel_db(most_dead * 1e-3 + 1e-11, most_dead) == pytest.approx(30)
    assert channel_db(torch.zeros(1, 3), power) == math.inf == channel_db(power, torch.zeros(1, 3))
    assert floor_db(None) == -math.inf and floor_db(8) == 15


def test_inputs_that_are_rounded_too_coarsely_are_told():
    """One channel of the input is a thousand times larger than the one that matters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 1, bias=False), nn.Flatten(), nn.Linear(4 * 64, 5))
    with torch.no_grad():
        model[0].weight[:, 0] = 0
    x = torch.randn(32, 2, 8, 8) * torch.tensor([1e3, 1.0])[:, None, None]
    run = compress(model.eval(), Recipe().updated(["signal.kind=loader"]), x, images=(x,))
    (coarse,) = run.summary.coarse_inputs
    assert (coarse.name, coarse.bits) == ("0", 8) and coarse.input_db < 5
    assert any(
        said.startswith("0: rounding its input to 8 bits leaves 0 dB of each channel") for said in losses(run.summary)
    )
