"""Layers whose channels would be lost are solved otherwise, and the summary says so: one network a cause."""

import math
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from datafree import Recipe, Run, compress, export_onnx
from datafree.app.export_options import options_for
from datafree.app.forecast import Forecast
from datafree.app.inspection import inspect
from datafree.app.sentences import forecasts, losses
from datafree.export import exporter_for
from datafree.recipe import presets
from datafree.solve.mending import ALIVE, channel_db, floor_db
from nets import calibrate_batchnorm_

PLAIN = ["equalize=off", "slim=off", "solve.method=nearest", "signal.images=8", "first_last=same"]
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


def network(*, loud=None, **options):
    """`Uneven`, trained so to speak, and what it takes; `loud`: one channel is so many times larger, and not read."""
    torch.manual_seed(0)
    model, x = Uneven(**options), torch.randn(64, 3, 16, 16)
    calibrate_batchnorm_(model, x)
    if options.get("idle"):
        model.first[1].weight.data[0], model.first[1].bias.data[0] = 1e-5, 1.0
    if loud:
        model.first[1].weight.data[0] *= loud
        model.second[0].weight.data[:, 0] = 0
    return model.eval(), x[:1]


def compressed(settings, **options):
    model, x = network(**options)
    return compress(model, Recipe.preset("w8a8").updated([*PLAIN, *settings]), x)


def layer(run, name="second.0"):
    return next(layer for layer in run.layers if layer.name == name)


@pytest.mark.parametrize(
    "settings, options, what, reason",
    [
        (["weights.per=tensor"], {"spread": 1e3}, "weights", r"rows of 1 : \d{4} under one scale"),
        (["weights.bits=4"], {"idle": 300.0}, "weights", r"one weight is \d{4,} times those around it"),
        ([], {"loud": 1e3}, "input", r"input channels of 1 : \d{4} under one scale"),
    ],
    ids=["one scale for unequal rows", "a weight that takes the range", "unequal inputs"],
)
def test_inspect_forecasts_what_comes_out(settings, options, what, reason):
    recipe = Recipe.preset("w8a8").updated([*PLAIN, *settings])
    model, x = network(**options)
    (found,) = [f for f in inspect(model, x, recipe=recipe).forecast if f.what == what and f.name == "second.0"]
    assert re.fullmatch(reason, found.reason), found
    said = next(forecasts([found]))
    assert said.startswith(f"second.0: rounding its {what} will leave about {found.channel_db:.0f} dB of each channel")
    assert found.reason in said
    summary = compress(model, recipe, x).summary
    came_out = summary.mended if what == "weights" else summary.coarse_inputs
    assert "second.0" in [layer.name for layer in came_out]


def test_inspect_forecasts_nothing_of_an_even_network():
    model, x = network()
    assert inspect(model, x, recipe=Recipe.preset("w8a8-tensor")).forecast == ()


def test_a_forecast_of_many_layers_is_a_few_lines():
    many = [Forecast(f"{number}", "input", 8, 10.0 - number, "why", output_db=-1.0) for number in range(5)]
    lines = list(forecasts(many))
    assert lines[0] == (
        "4: rounding its input will leave about 6 dB of each channel on average, 0 dB of the network's output (why)"
    )
    assert len(lines) == 4 and lines[-1] == "rounding the input of 2 more layers will leave less than it should"
    (said,) = forecasts([replace(layer, output_db=20.0 + n) for n, layer in enumerate(many)])
    assert said == (
        "0, 1, 2 and 2 more: rounding the input leaves 6 dB or more of each channel on average, but 20 dB or more "
        "of the network's output: those channels hardly matter"
    )


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
    assert (mended.tried, mended.bytes) == ((IDLE,), 4 * 7)
    said = next(losses(run.summary))
    assert said.startswith("second.0: as it was asked for, ") and ONE_SCALE in said
    assert f"after {IDLE} did not help" in said and said.endswith("28 bytes more")


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


def on_unequal_inputs(*, behind=None, settings=()):
    """The small channel of the input makes all of the first layer's outputs; or two of four, that weigh `behind`."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 1, bias=False), nn.Flatten(), nn.Linear(4 * 64, 5))
    with torch.no_grad():
        model[0].weight[2 * (behind is not None) :, 0] = 0
        if behind is not None:
            model[2].weight[:, 2 * 64 :] *= behind
    x = torch.randn(32, 2, 8, 8) * torch.tensor([1e3, 1.0])[:, None, None]
    recipe = Recipe().updated(["signal.kind=loader", "first_last=same", *settings])
    return compress(model.eval(), recipe, x, images=(x,))


@pytest.mark.parametrize("bits, advice", [(8, "null"), (4, "8")])
def test_inputs_that_are_rounded_too_coarsely_are_warned_of(tmp_path, bits, advice):
    run = on_unequal_inputs(settings=[f"activations.bits={bits}"])
    (coarse,) = run.summary.coarse_inputs
    assert (coarse.name, coarse.bits) == ("0", bits) and coarse.input_db < 5 and coarse.output_db < 5
    said = run.summary.warnings[-1]
    assert said.startswith(f"0: rounding its input to {bits} bits leaves 0 dB of each channel on average and, alone, 0")
    assert f"layers.0.activations.bits={advice} or layers.0=keep" in said
    assert said in export_onnx(run, tmp_path / "net.onnx").notes
    path = tmp_path / "net.safetensors"
    assert said in exporter_for(path).write(run, path, options_for(path, {}), force=False).notes
    run.save(tmp_path / "run")
    assert Run.load(tmp_path / "run").summary == run.summary


def test_the_advice_of_the_warning_helps():
    run = on_unequal_inputs(settings=["layers.0.activations.bits=null"])
    assert run.summary.coarse_inputs == () and not any("rounding its input" in said for said in run.summary.warnings)


def test_channels_lost_that_hardly_matter_are_told_and_not_warned_of():
    run = on_unequal_inputs(behind=1e-3)
    (coarse,) = run.summary.coarse_inputs
    assert coarse.input_db < 5 and coarse.output_db > 30
    assert not any("rounding" in said for said in run.summary.warnings)
    (said,) = losses(run.summary)
    assert said.startswith("0: rounding the input leaves ") and said.endswith("those channels hardly matter")


def test_a_dead_channel_takes_nothing_from_those_alive():
    """BatchNorm's variance is all but zero: equalization leaves such a row as it is, and the others keep the scale."""
    torch.manual_seed(0)
    model, x = Uneven(), torch.randn(64, 3, 16, 16)
    model.first[0].weight.data[0] *= 1e-8
    calibrate_batchnorm_(model, x)
    model.first[1].weight.data[0] = 1e-8
    run = compress(model.eval(), Recipe.preset("w8a8-tensor").updated(["slim=off", "signal.images=8"]), x[:1])
    assert run.summary.mended == run.summary.coarse_inputs == ()
    assert all(found.channel_db > 30 and found.input_db > 30 for found in run.layers)


def test_baselines_are_not_mended():
    run = compressed(["weights.per=tensor", "solve.mend=false"], spread=1e3)
    assert run.summary.mended == () and layer(run).channel_db < 2
    assert not any(Recipe.preset(name).solve.mend for name in presets() if name.startswith("paper"))
