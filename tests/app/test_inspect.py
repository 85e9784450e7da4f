"""Inspection: what it says before is what `compress` does after; producers, statistics and bits of every net."""

import functools
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from datafree.app.forecast import rounded
from datafree.app.inspection import inspect
from datafree.graph.capture import CaptureError, trace
from datafree.models.load import ModelError
from datafree.pipeline import compress
from datafree.recipe import Inverted, Nearest, Propagated, Recipe, RecipeError
from datafree.signals import moving_seconds
from datafree.solve import compress_layer
from datafree.teacher.batchnorm import fold_batchnorm_
from jobs import SPECS, make_job
from nets import FEW, NETS

# Those whose hazard lies in what feeds what, or in where a BatchNorm is.
WALKED = (
    "chain", "declared out of order", "residual", "concat", "squeeze and excitation", "channel shuffle and split",
    "two inputs", "two outputs", "shared module", "functional batchnorm", "pre-activation", "batchnorm first",
    "conv without batchnorm", "no batchnorm at all", "transposed conv", "linear after flatten",
)  # fmt: skip
W4A8 = Recipe.preset("w4a8").updated(["signal.kind=propagated", "signal.images=4", "equalize=foldable"])


@functools.cache
def inspected(name):
    return inspect(*NETS[name](), recipe=W4A8)


def by_name(found):
    return {layer.name: layer for layer in found.layers}


@pytest.mark.parametrize("net", [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in WALKED])
def test_every_layer_is_told_with_what_feeds_it(net):
    found = inspected(net)
    names = [layer.name for layer in found.layers]
    assert len(names) == len(set(names)) > 0
    for position, layer in enumerate(found.layers):
        assert layer.producers, layer
        assert all(producer not in names[position:] for producer in layer.producers), layer
    assert [e.mode for e in found.equalizations] == ["free", "foldable", "depthwise"]
    assert found.equalizations[0].coverage >= found.equalizations[1].coverage
    assert found.input_shapes == tuple(tuple(x.shape[1:]) for x in NETS[net]()[1])


@pytest.mark.parametrize(
    "net, layer, producers",
    [
        ("chain", "1.conv", ("0.conv",)),
        ("declared out of order", "conv2", ("conv1",)),
        ("residual", "5.2", ("0.conv", "1.1.conv", "3.1.conv")),
        ("concat", "2.1.conv", ("0.conv", "1.1.conv")),
        ("squeeze and excitation", "last.conv", ("stem.conv", "expand")),
        ("shared module", "3.2", ("2.conv",)),
        ("channel shuffle and split", "last.conv", ("stem.conv", "body.1.conv")),
    ],
)
def test_producers_are_found_through_other_operators(net, layer, producers):
    assert by_name(inspected(net))[layer].producers == producers


def test_statistics_are_known_where_batchnorm_is():
    layers = by_name(inspected("conv without batchnorm"))
    known = {name: (layer.knows_input, layer.knows_output) for name, layer in layers.items()}
    assert known == {
        "0.conv": (False, True),
        "1": (True, False),
        "3": (False, False),
        "5.conv": (False, True),
        "6.2": (True, False),
    }


def test_batchnorm_that_cannot_fold_is_counted_with_its_reason():
    found = inspected("pre-activation")
    assert found.num_batchnorms == 5
    assert [item.name for item in found.kept] == ["1.0", "2.0", "3"]
    assert "other consumers" in found.kept[0].reason


@pytest.mark.parametrize("mode", ["free", "foldable"])
def test_compress_does_what_was_said(mode):
    model, inputs = NETS["activations"]()
    recipe = W4A8.updated([f"equalize={mode}", "solve.sequential=false", "layers.2.conv=keep"])
    found = inspect(model, inputs, recipe=recipe)
    run = compress(model, recipe, inputs)
    assert found.equalizations[("free", "foldable").index(mode)] == run.summary.equalization
    assert found.input_range == str(run.summary.input_range)
    assert found.skipped + found.kept == run.summary.skipped
    assert found.warnings == run.summary.warnings
    planned = {layer.name: layer.weight_bits for layer in found.layers if layer.weight_bits}
    assert planned == {layer.name: layer.bits for layer in run.layers}
    assert by_name(found)["2.conv"].weight_bits is None


def test_input_range_of_a_loader_is_its_own():
    recipe = Recipe(signal={"kind": "loader"})
    assert inspect(*NETS["chain"](), recipe=recipe).input_range == "the images given"


def test_model_is_left_as_it_was_and_warned_about():
    model, inputs = NETS["no batchnorm at all"]()
    before = {name: tensor.clone() for name, tensor in model.train().state_dict().items()}
    text = " ".join(inspect(model, inputs, recipe=W4A8).warnings)
    assert "train mode" in text and "no BatchNorm" in text
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "change, error, message",
    [
        (["layers.nosuch=keep"], RecipeError, "'nosuch' matches no layer"),
        ([], ModelError, "1 NaN"),
        ([], CaptureError, "cannot be captured"),
    ],
)
def test_errors_are_those_of_compress(change, error, message):
    model, (x,) = NETS["chain"]()
    if error is ModelError:
        with torch.no_grad():
            model[0].conv.weight[0, 0, 0, 0] = torch.nan
    if error is CaptureError:
        x = nn.functional.pad(x, (0, 0, 0, 0, 0, 1))  # a channel too many
    with pytest.raises(error, match=message):
        inspect(model, x, recipe=Recipe().updated(change))


class Summed(nn.Module):
    """Ends in an operator that ONNX files are not written with."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return torch.cumsum(self.conv(x), 1)


def test_files_that_could_not_be_written_are_told_before():
    pytest.importorskip("onnxruntime")
    warnings = " ".join(inspect(Summed(), torch.zeros(1, 3, 8, 8), recipe=W4A8).warnings)
    assert re.search(r"no \.onnx file can be written: .*cumsum.* no ONNX operator is known for it", warnings)
    assert ".safetensors" not in warnings


def test_a_batchnorm_that_saw_no_image_is_told():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    never = "BatchNorm has mean 0 and variance 1 everywhere"
    assert never in " ".join(inspect(model, torch.zeros(1, 3, 8, 8), recipe=W4A8).warnings)
    model(torch.rand(4, 3, 8, 8))
    assert never not in " ".join(inspect(model, torch.zeros(1, 3, 8, 8), recipe=W4A8).warnings)


def test_more_images_take_more_memory():
    few, many = (
        inspect(*NETS["residual"](), recipe=W4A8.updated([f"signal={{kind: inverted, images: {n}, steps: {n}}}"]))
        for n in (2, 64)
    )
    assert min(few.seconds, many.seconds) > 0
    assert 0 < few.memory < many.memory


def test_only_images_that_are_moved_take_time_to_move():
    model, inputs = NETS["residual"]()
    graph = trace(model, inputs)
    stats, _ = fold_batchnorm_(graph)
    short, long = (moving_seconds(graph, stats, Inverted(steps=n), 64) for n in (1, 10**9))
    assert 0 < short < long
    assert moving_seconds(graph, stats, Propagated(), 64) is None
    assert moving_seconds(graph, {}, Inverted(), 64) is None


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("spec", ["channel", "tensor"])
def test_layers_are_forecast_as_with_a_search_of_every_range(spec, bits):
    """Rows with one weight ever further out: some hold as they are, some with a search, some with neither."""
    told = set()
    for reach in (1, 4, 16, 64, 256):
        job = make_job(Nearest(), spec=replace(SPECS[spec], bits=bits), diagonal=True)
        job.weight[..., 0] = reach * job.weight.abs().amax(2)  # of an input that hardly moves
        job.moments.cov[..., 0] *= 1e-7
        searched, found = compress_layer(job), rounded(job)
        assert found.remedy == searched.remedy
        if found.remedy:
            assert found.as_asked_db == searched.as_asked_db
        told.add(bool(found.remedy))
    assert told == {False, True}
