"""Several recipes of one network: images in common, what is done is kept, wrong use is told before the work."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from datafree import Run
from datafree.app import cli, sweep

pytest.importorskip("onnxruntime")
pytest.importorskip("vl_convert")
FACTORY = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    blocks = [part for c in (3, 8) for part in (nn.Conv2d(c, 8, 3), nn.BatchNorm2d(8), nn.ReLU())]
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    model(torch.rand(64, 3, 12, 12))
    return model, torch.zeros(1, 3, 12, 12)
"""
MODEL = "tiny_factory_of_sweep_tests:net"
RECIPE = """
signal: {kind: matched, images: 4, steps: 2}
weights: {bits: %s}
solve: {method: nearest}
"""


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    (tmp_path / "tiny_factory_of_sweep_tests.py").write_text(FACTORY)
    for bits in (8, 4):
        (tmp_path / f"bits{bits}.yaml").write_text(RECIPE % bits)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def call(capsys, *arguments):
    code = cli.main(["sweep", MODEL, *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_one_set_of_images_and_what_is_done_is_kept(capsys, monkeypatch):
    """One recipe, then a second one: the first is not made again, both share its images."""
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "onnxruntime", None)
        code, out, err = call(capsys, "--recipes", "bits8.yaml", "--out", "all")
    assert code == 0 and "nothing was timed, for want of ONNX Runtime" in out, err
    assert re.search(r"bits8 .*%", out) and "sweep.html: open it in a browser" in out
    eight, made = Run.load("all/bits8"), Path("all/bits8/summary.json").stat().st_mtime_ns
    monkeypatch.setattr(sweep, "TURNS", 2)
    code, out, err = call(capsys, "--recipes", "bits8.yaml,bits4.yaml", "--out", "all", "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert [row["recipe"] for row in rows] == ["bits8", "bits4"]
    assert [row["bytes"] for row in rows] == [Run.load(f"all/{row['recipe']}").summary.bytes for row in rows]
    assert rows[1]["best_size"] and all(row["milliseconds"] > 0 for row in rows)
    assert Path("all/bits8/summary.json").stat().st_mtime_ns == made
    four = Run.load("all/bits4")
    assert eight.images[0].equal(four.images[0]) and len(eight.images[0]) == 4
    page = Path("all/sweep.html").read_text()
    assert "Side by side" in page and "Time against agreement" in page
    command = Path("all/bits4/command.txt").read_text()
    assert "--recipe bits4.yaml" in command and "--images all/bits8" in command


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--recipes", "w8a8,w9a9", "--out", "all"], "no preset 'w9a9'; presets are w8a8"),
        (["--recipes", "w8a8,w8a8", "--out", "all"], "'w8a8' comes twice, or is 'float'; give each recipe a name"),
        (["--recipes", ",", "--out", "all"], "--recipes names none; write --recipes w8a8,w4a8"),
        (["--recipes", "w8a8", "--out", "bits8.yaml"], "bits8.yaml exists and is no sweep; choose another --out"),
        (["--recipes", "w8a8", "--out", "."], ". exists and is no sweep; choose another --out"),
        (["--recipes", "w8a8", "--out", "other"], "holds a sweep of model tiny, seed 1; choose another --out"),
        (["--recipes", "w8a8", "--out", "damaged"], "sweep.json is damaged: "),
        (["--out", "all"], "Missing option '--recipes'; see datafree sweep --help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "says",
)
def test_wrong_use_is_refused_before_the_work(arguments, message, capsys):
    for name, text in (("other", '{"model": "tiny", "seed": "1", "recipes": {}}'), ("damaged", "[]")):
        Path(name).mkdir()
        Path(name, "sweep.json").write_text(text)
    before = sorted(Path().rglob("*"))
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1
    assert [p for p in sorted(Path().rglob("*")) if "__pycache__" not in str(p)] == before
