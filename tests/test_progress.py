"""What Python users see: a bar where there is a terminal, a run in five lines, a version."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import datafree
from datafree import Recipe, compress
from datafree.execution import ignore_plan, ignore_steps
from datafree.progress import ignore, watched
from datafree.records import Estimate
from nets import NETS

RECIPE = Recipe.parse("weights: {bits: 4}\nsignal: {images: 2, kind: matched, steps: 2}\n")
SOURCE = {**os.environ, "PYTHONPATH": str(Path(datafree.__file__).parents[1])}


def as_terminal(monkeypatch):
    """A stderr that says it is a terminal, and keeps what is written; pytest puts its own there before every test."""
    said = io.StringIO()
    said.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return said


def made(**more):
    model, inputs = NETS["chain"]()
    return compress(model, RECIPE, inputs, **more)


def test_a_terminal_shows_a_bar(monkeypatch):
    terminal = as_terminal(monkeypatch)
    made()
    assert "solving layers" in terminal.getvalue()


def test_no_bar_where_it_is_not_wanted_or_someone_watches(monkeypatch):
    terminal = as_terminal(monkeypatch)
    made(progress=False)
    made(on_done=lambda result: None)
    made(on_step=lambda what, done, total: None)
    assert terminal.getvalue() == ""


def test_a_bar_on_request_leaves_callbacks_alone(monkeypatch):
    terminal = as_terminal(monkeypatch)
    steps, layers = [], []
    run = made(progress=True, on_step=lambda *step: steps.append(step), on_done=layers.append)
    assert steps[:2] == [("making images", 1, 2), ("making images", 2, 2)]
    assert [layer.name for layer in layers] == [layer.name for layer in run.layers]
    assert terminal.getvalue()


def test_without_a_terminal_nothing_is_written(capfd):
    made()
    assert capfd.readouterr() == ("", "")


def test_the_bar_is_gone_after_an_error(monkeypatch):
    terminal = as_terminal(monkeypatch)
    with pytest.raises(KeyError), watched(ignore_steps, ignore_plan, ignore, shown=None) as (step, _):
        step("making images", 1, 2)
        raise KeyError
    assert "\x1b[?25h" in terminal.getvalue(), "the cursor is back"


# A run as it is shown


def test_a_run_is_five_lines():
    run = made()
    lines = repr(run).splitlines()
    assert [line.split()[0] for line in lines] == ["Run", "asked", "layers", "size", "agreement"]
    assert lines[0] == "Run of Sequential" and "weights 4 bits, activations 8 bits, on matched images" in lines[1]
    assert "3 of 3 compressed" in lines[2] and "predicts it" in lines[4]
    known = replace(run.summary, estimate=Estimate(97.0, 95.0, 98.0), warnings=("one", "two"), macs=1)
    shown = repr(replace(run, summary=known))
    assert "97.0 % (95.0 to 98.0) of images get the class" in shown and "2 warnings in summary.warnings" in shown
    assert f"1 of {run.summary.float_macs:,} multiply-adds" in shown and len(shown.splitlines()) == 5


def test_what_is_pruned_or_given_is_said():
    run = made()
    recipe = Recipe.preset("prune50").updated(["signal.kind=loader"])
    assert "weights float, activations float, 50 % pruned (unstructured), on images given" in repr(
        replace(run, recipe=recipe)
    )


def test_notebooks_show_a_table_of_text_alone():
    run = made()
    shown = replace(run, summary=replace(run.summary, model="<script>alert(1)</script>"))._repr_html_()
    assert "<script>" not in shown and "&lt;script&gt;" in shown
    assert shown.count("<tr>") == 4 and "<table>" in shown


# The package


def python(*arguments, **more):
    return subprocess.run([sys.executable, *arguments], env=SOURCE, capture_output=True, text=True, **more)


def test_the_version_is_that_of_the_package():
    from importlib.metadata import version

    assert datafree.__version__ == version("datafree")
    with pytest.raises(AttributeError, match="module 'datafree' has no attribute 'wersion'"):
        _ = datafree.wersion


def test_types_are_for_others_too():
    assert (Path(datafree.__file__).parent / "py.typed").is_file()


def test_the_package_is_the_command_line():
    done = python("-m", "datafree", "--version", check=True)
    assert done.stdout.split() == ["datafree", datafree.__version__]
    assert python("-m", "datafree", "nothing").returncode == 2
