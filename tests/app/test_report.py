"""The page of a run: its numbers are the run's, names are escaped, and it needs nothing from outside."""

from __future__ import annotations

import html
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from datafree import Recipe, Run, compress, write_report
from datafree.app import cli, tables
from datafree.app.origin import COMMAND, EVALUATION, Origin
from datafree.app.pareto import best
from datafree.app.report import page
from datafree.app.report.facts import facts_of
from datafree.app.report.page import LARGEST, ReportError
from datafree.extras import install
from datafree.run import RunError
from nets import NETS

pytest.importorskip("altair")
pytest.importorskip("vl_convert")
pytest.importorskip("PIL")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def runs():
    """At 8 bits, and at 4 with images, equalized inputs of depthwise layers and a budget."""
    model, inputs = NETS["depthwise inverted residual"]()
    few = ["signal.images=4"]
    other = [*few, "signal.kind=matched", "signal.steps=2", "solve.method=nearest", "solve.sequential=false"]
    return (
        compress(model, Recipe.preset("w8a8").updated(few), inputs, predict=True),
        compress(model, Recipe.preset("w4a8").updated(other), inputs),
    )


@pytest.fixture(scope="module")
def folder(runs, tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    for name, run in zip(("eight", "four"), runs, strict=True):
        run.save(place / name)
    return place


def charts_of(text):
    return [json.loads(spec) for spec in re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)]


def without_library(text):
    return text.replace(page.library(), "")


def test_every_layer_is_there_with_its_numbers(runs):
    for run in runs:
        found = facts_of(run, Origin("net"))
        text = html.unescape(page.render([found]))
        assert [row.name for row in found.layers] == [layer.name for layer in run.layers]
        for row, layer in zip(found.layers, run.layers, strict=True):
            assert (row.bits, row.zeros, row.weights_db) == (layer.bits, 100 * layer.sparsity, layer.error_db)
            assert row.noise > 0 and row.input_bits == 8
            assert f">{row.name}</th>" in text and f">{page.figure(layer.error_db)}</td>" in text
        assert sum(row.bytes for row in found.layers) == run.summary.bytes
        assert sum(row.macs for row in found.layers) == run.summary.macs
        assert tables.num_bytes(run.summary.bytes) in text
        assert all(fact in text for fact in found.facts.values())


def test_agreement_is_that_of_the_run(runs):
    text = page.render([facts_of(runs[0], Origin("net"))])
    assert f"<strong>{runs[0].summary.estimate.agreement:.0f} %</strong>" in text
    assert "Agreement was not predicted" in page.render([facts_of(runs[1], Origin("net"))])


def test_histograms_hold_all_values_and_the_range_of_the_grid(runs):
    for found in facts_of(runs[0], Origin("net")).histograms:
        assert found.low < found.high and len(found.edges) == len(found.counts) + 1
        assert found.edges[0] <= found.low + 1e-3 * abs(found.low) and sum(found.counts) > 0
        assert 0 <= found.outside < 50


def test_ranges_before_equalization_are_kept(runs):
    off, depthwise = (facts_of(run, Origin("net")).ranges for run in runs)
    assert all(row.before is None for row in off)
    moved = runs[1].summary.equalization.depthwise
    assert moved and {row.after.name for row in depthwise if row.before != row.after} == set(moved)


def test_nothing_is_loaded_from_outside_and_it_is_small(runs, tmp_path):
    file = write_report(runs, tmp_path / "page.html")
    assert file.stat().st_size < LARGEST
    text = without_library(file.read_text())
    assert not re.search(r"""(src|href)="(?!data:)|@import|url\(""", text)
    assert "default-src 'none'" in text and "data:image/webp;base64," in text
    assert 'id="vg-tooltip-element"' not in text and len(charts_of(text)) > 6


def test_names_of_strangers_are_escaped():
    evil = "<script>alert(1)<"
    model = nn.Sequential()
    model.add_module(evil, nn.Conv2d(3, 4, 3))
    model.add_module("flat", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))
    inputs = NETS["residual"]()[1]
    run = compress(model.eval(), Recipe.preset("w8a8").updated(["signal.images=2"]), inputs)
    text = page.render([facts_of(run, Origin("</title><script>alert(2)</script>", "rm </pre><script>"))])
    assert "<script>alert" not in text and "</title><script>" not in text and "</pre><script>" not in text
    assert html.escape(evil) in text
    assert any(evil in json.dumps(spec) for spec in charts_of(text))


def test_several_runs_are_set_side_by_side(runs):
    found = [facts_of(run, Origin(name)) for run, name in zip(runs, ("eight", "four"), strict=True)]
    text = page.render([*found, *[replace(found[1], origin=Origin(f"copy {i}")) for i in range(6)]])
    assert text.count('<th scope="row">') == 8 and text.count("<details><summary><h2>") == page.MOST_SHOWN
    assert "Side by side" in text and "the first 6 runs follow" in text


def test_what_lies_beside_a_run_is_told(folder, tmp_path):
    shutil.copytree(folder / "eight", tmp_path / "run")
    (tmp_path / "run" / COMMAND).write_text("datafree compress net.onnx --out run\n")
    facts = {"top-1, student": "70.00 ± 1.00 %", "images": "pictures"}
    (tmp_path / "run" / EVALUATION).write_text(json.dumps({"figures": {}, "facts": facts}))
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    text = (tmp_path / "run" / "report.html").read_text()
    assert "datafree compress net.onnx --out run" in text and "70.00 ± 1.00 %" in text
    assert Run.load(tmp_path / "run").summary.bytes
    (tmp_path / "run" / EVALUATION).write_text("{}")
    with pytest.raises(RunError, match=r"evaluation\.json is damaged: .*; delete it, or run datafree evaluate again"):
        write_report(tmp_path / "run", tmp_path / "other.html")


def test_wrong_use_is_one_line(folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "there.html").write_text("mine")
    one, two = str(folder / "eight"), str(folder / "four")
    wrong = {
        (str(tmp_path),): "is not a run directory",
        (one, "--out", str(tmp_path / "there.html")): "exists; choose another --out, or --force to replace a file",
        (one, "--out", str(tmp_path), "--force"): "exists; choose another --out",
        (one, two): "several runs need a file to write: give --out report.html",
    }
    for arguments, message in wrong.items():
        assert cli.main(["report", *arguments]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
    monkeypatch.setattr(page, "NEEDED", ("no_such_package",))
    assert cli.main(["report", one]) == 2
    assert f"a report needs no_such_package; {install('report')}" in capsys.readouterr().err
    assert (tmp_path / "there.html").read_text() == "mine"


def test_no_run_and_too_large_a_page_are_refused(runs, tmp_path, monkeypatch):
    with pytest.raises(ReportError, match="there is no run to report on; give at least one"):
        write_report([], tmp_path / "page.html")
    monkeypatch.setattr(page, "LARGEST", 1000)
    with pytest.raises(ReportError, match=r"would have [\d.]+ [kM]B, more than 3 MB; give fewer runs"):
        write_report(runs[0], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    "costs, gains, expected",
    [
        ([1, 2, 3], [1, 2, 3], [True, True, True]),
        ([1, 2, 3], [3, 2, 4], [True, False, True]),
        ([1, 1, 1], [3, 3, 2], [True, True, False]),
        ([1, None, 2], [3, 9, None], [True, False, False]),
    ],
)
def test_best_of_a_trade_off(costs, gains, expected):
    assert best(costs, gains) == expected


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
def test_in_a_browser(runs, tmp_path):
    """No error, no request, charts there in light, dark, wide and narrow; a heading sorts by keyboard."""
    playwright = pytest.importorskip("playwright.sync_api")
    file = write_report(runs, tmp_path / "page.html")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for scheme, width in (("light", 1280), ("dark", 390)):
            tab = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}).new_page()
            said, asked = [], []
            tab.on("console", lambda message, said=said: said.append(message.text))
            tab.on("pageerror", lambda error, said=said: said.append(str(error)))
            tab.on("request", lambda request, asked=asked: asked.append(request.url))
            tab.goto(Path(file).as_uri())
            tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            for chart in tab.query_selector_all(".chart"):
                chart.scroll_into_view_if_needed()
                chart.wait_for_selector("svg")
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert [url for url in asked if not url.startswith(("file:", "data:"))] == said == []
            table = tab.locator("table").nth(1)
            table.get_by_role("button", name="bytes").focus()
            tab.keyboard.press("Enter")
            sizes = [int(v) for v in table.locator("td:nth-child(11)").evaluate_all("c => c.map(x => x.dataset.value)")]
            assert sizes == sorted(sizes, reverse=True) and len(sizes) == len(runs[0].layers)
            tab.keyboard.press("Enter")
            assert table.locator("th[aria-sort=ascending]").count() == 1
        browser.close()
