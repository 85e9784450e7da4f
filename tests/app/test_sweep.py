"""Several recipes of one network: images in common, what is done is kept, wrong use is told before the work."""

from __future__ import annotations

import json
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from datafree import Recipe, Run
from datafree.app import cli, sweep
from datafree.app.sweep_runs import Asked, Network, Sweep, compress_all, ready
from datafree.app.unfinished import Interrupted
from datafree.execution import one_thread, serial

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


def asked(name, bits, kind="matched"):
    signal = {"kind": kind, "images": 4} | ({"steps": 2} if kind == "matched" else {})
    return Asked(name, Recipe(signal=signal, weights={"bits": bits}, solve={"method": "nearest"}))


def a_sweep(name, recipes, out, model=None):
    torch.manual_seed(0)
    default = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))
    example = torch.zeros(1, 3, 12, 12)
    return Sweep(Network(name, (model or default).eval(), example, (name,), None, 0), recipes, out)


def elsewhere(rounds):
    """A pool whose items and results go through bytes; notes what it is given."""

    def pool(function, items):
        jobs = list(items)
        rounds.append([job.name for job in jobs])
        for job in jobs:
            there, moved = pickle.loads(pickle.dumps((function, job)))
            yield pickle.loads(pickle.dumps(there(moved)))

    return pool


def test_recipes_of_several_networks_go_side_by_side_to_the_same_runs(tmp_path):
    """Those that make images for others first; then all others, on these images."""
    recipes = {"a": asked("a", 8), "b": asked("b", 4), "c": asked("c", 4, "propagated")}
    rounds, names = [], ("one", "two")
    with one_thread():
        alone = compress_all([a_sweep(name, recipes, tmp_path / "alone" / name) for name in names], serial)
        runs = compress_all([a_sweep(n, recipes, tmp_path / "pool" / n) for n in names], elsewhere(rounds))
    assert rounds == [["one, a", "one, c", "two, a", "two, c"], ["one, b", "two, b"]]
    for mine, theirs in zip(runs, alone, strict=True):
        assert list(mine) == list(theirs) == ["a", "b", "c"]
        assert mine["a"].images[0].equal(mine["b"].images[0])
        for name in mine:
            here, there = mine[name].student.state_dict(), theirs[name].student.state_dict()
            assert here.keys() == there.keys() and all(here[key].equal(there[key]) for key in here)
    saved = [(tmp_path / where / "one/b/command.txt").read_text() for where in ("alone", "pool")]
    assert saved[0].replace("/alone/", "/pool/") == saved[1]
    assert f"--images {tmp_path}/pool/one/a" in saved[1]


def test_a_network_that_cannot_be_sent_is_compressed_here(tmp_path):
    class Local(nn.Sequential):
        pass

    local = Local(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    recipes, rounds = {"a": asked("a", 8, "propagated"), "b": asked("b", 4, "propagated")}, []
    runs = compress_all([a_sweep("local", recipes, tmp_path, local)], elsewhere(rounds))
    assert list(runs[0]) == ["a", "b"]
    assert [name for names in rounds for name in names if name.startswith("local")] == []


def test_what_was_begun_here_goes_on_here_and_a_stop_keeps_what_is_finished(tmp_path):
    recipes = {name: asked(name, bits, "propagated") for name, bits in (("a", 8), ("b", 4), ("c", 3))}
    out = tmp_path / "all"

    def stopped(function, items):
        yield function(next(iter(items)))
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=r"^finished runs are kept: the same command goes on from there$"):
        compress_all([a_sweep("net", recipes, out)], stopped)
    assert sorted(place.name for place in out.iterdir()) == ["a"]
    (out / "c.part").mkdir()
    (out / "c.part/job.json").write_text("{}")
    jobs = ready(a_sweep("net", recipes, out), {})
    assert [job.name for job in jobs] == ["net, a", "net, b", "net, c"]
    with pytest.raises(ValueError, match=r"c\.part"):
        compress_all([a_sweep("net", recipes, out)], stopped)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["other:net", "--recipes", "w8a8", "--out", "all"], "have the same name; sweep one of them by itself"),
        (["demo", "--recipes", "w8a8", "--out", "other"], "other holds a sweep of one model; choose another --out"),
        (["demo", "--recipes", "w8a8", "--out", "all", "--weights", "a.pth"], "can be those of one model alone"),
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
