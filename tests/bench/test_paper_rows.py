"""The paper's comparison and ablation: rows are recipes, claims follow from rows, marks and blanks say why."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("sklearn")
from bench import rows
from bench.published import baselines
from bench.tables import ablation, accuracy, paper, paper_claims, paper_pages, paper_parts, plots
from bench.tables.paper_parts import PARTS, Point, points
from datafree import Recipe
from datafree.execution.pools import one_thread
from datafree.student.distill_images import DistillError

NETWORK = "resnet20_cifar10"


def row(part="bits", method="ours", preset="w8a8-tensor", top1=80.0, commit="new", **more):
    known = {"float_top1": 81.0, "lost": 81.0 - top1, "lost_error": 0.3, "agreement": 90.0, "forward_passes": 100.0}
    known |= {"seconds": 2.0, **more}
    return paper.Row(part, known.pop("network", NETWORK), method, preset, 0, 100, top1=top1, commit=commit, **known)


@pytest.fixture(autouse=True)
def new_is_current(monkeypatch):
    """Rows of the commit "new" are current, others old."""
    monkeypatch.setattr(rows, "is_current", lambda commit: commit == "new")
    monkeypatch.setattr(rows, "STARTED_AT", "new")


# ---- rows are recipes


@pytest.mark.parametrize("network", [NETWORK, "efficientnet_lite0", "resnet_digits"])
@pytest.mark.parametrize("part", PARTS)
def test_every_point_is_a_recipe_or_a_baseline(part, network):
    found = points(network, [part])
    assert len({(p.method, p.preset) for p in found}) == len(found), "no two are one cell"
    for point in found:
        if point.baseline:
            assert point.baseline in {**baselines.BASELINES, **baselines.PRUNING}
        elif point.images is None:
            assert point.start.distill is None
        else:
            asked, signal = point.training.distill, point.training.signal
            assert asked is not None and signal.kind == asked.images, "it is trained on the images that are made for it"
            assert asked.guard == point.method.endswith("from ours")


def test_the_papers_row_has_the_papers_setting():
    for point in points(NETWORK, ["bits"]):
        if point.method == "paper":
            recipe = point.start
            assert (recipe.weights.per, recipe.first_last, recipe.signal.kind) == ("tensor", "same", "gaussian")
            asked = (recipe.weights.bits, recipe.activations.bits)
            assert asked == paper_parts.WIDTHS[point.preset.removesuffix("-tensor")]


def test_rows_of_one_label_have_one_setting():
    for point in points(NETWORK, ["bits"]):
        tensor = point.preset.endswith("-tensor")
        wanted = {"per": "tensor", "first_last": "same"} if tensor else {"per": "channel", "first_last": 8}
        if point.baseline:
            assert {"per": point.given["per"], "first_last": point.given["first_last"]} == wanted
        else:
            assert {"per": point.start.weights.per, "first_last": point.start.first_last} == wanted


def test_ours_per_tensor_are_the_presets_there_are():
    found = {p.preset: p.start for p in points(NETWORK, ["bits"]) if p.method == "ours"}
    for preset in ("w8a8", "w8a8-tensor", "w4a8-tensor", "w4a4"):
        assert found[preset] == Recipe.preset(preset)


def test_every_ablation_is_a_recipe_and_changes_it():
    for preset in ablation.PRESETS:
        made = {name: Recipe.preset(preset).updated(list(way.settings)) for name, way in ablation.WAYS.items()}
        assert len({recipe.dump() for recipe in made.values()}) == len(made)


# ---- running


def test_rows_on_file_are_not_made_again(tmp_path, monkeypatch):
    bench = argparse.Namespace(name=NETWORK, seed=0, num_images=100, measured_on="")
    bench.run = lambda point: row(method=point.method)
    asked = [Point("bits", name, "w8a8-tensor") for name in ("ours", "paper")]
    path = tmp_path / "paper.jsonl"
    paper.measure(bench, asked[:1], path)
    paper.measure(bench, asked, path)
    assert [json.loads(line)["method"] for line in path.read_text().splitlines()] == ["ours", "paper"]
    monkeypatch.setattr(rows, "is_current", lambda commit: False)
    paper.measure(bench, asked, path)
    assert len(path.read_text().splitlines()) == 4


def test_points_are_chosen_by_preset_and_by_how_their_method_begins():
    options = argparse.Namespace(presets=["prune50"], methods=["none", "AKD"], quick=True)
    found = [p.method for p in paper.chosen(points(NETWORK, PARTS), options)]
    assert set(found) == {f"{way} from {s}" for way in ("none", "AKD, kl") for s in paper_parts.starts("prune50")}


@pytest.fixture
def bench(tmp_path):
    """A network of two layers, and eight images."""
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    x = torch.randn(8, 1, 8, 8)
    with one_thread():
        yield paper.Bench("resnet_digits", model, x[:1], [(x, torch.zeros(8).long())], 0, tmp_path)


def test_a_student_trained_on_images_is_charged_for_both(bench):
    point = Point(
        "cost", "DI", "w4a4", "w4a4", paper_parts.PLAIN,
        **paper_parts.training(("signal.kind=inverted", "signal.steps=1", "signal.images=8"), steps=1),
    )  # fmt: skip
    found, alone = bench.run(point), bench.run(Point("cost", "none", "w4a4", "w4a4", paper_parts.PLAIN))
    assert found.forward_passes > alone.forward_passes > 0
    assert "after 1 of 1 steps" in found.note and alone.note == ""
    assert bench.run(point).macs == found.macs, "images from the cache cost what they cost"


def test_a_row_on_other_images_says_so_and_is_in_no_table(bench, tmp_path):
    bench.measured_on, bench.has_labels = "procedural images", False
    point = Point("cost", "none", "w4a4", "w4a4", paper_parts.PLAIN)
    paper.measure(bench, [point], path := tmp_path / "paper.jsonl")
    [found] = paper.written(path, "procedural images")
    assert found.top1 is None and found.lost is None and paper.written(path) == []
    assert f"agreement {found.agreement:.1f} % on 8 procedural images; " in str(found)
    assert "no labels, so top-1 is not known" in str(found)
    paper.measure(bench, [point], path)
    assert len(path.read_text().splitlines()) == 1


def test_a_run_that_diverges_is_a_rejected_row(bench, monkeypatch):
    def diverges(*_):
        raise DistillError("the loss is 9 at step 1")

    monkeypatch.setattr(bench, "_student", diverges)
    found = bench.run(Point("cost", "AKD", "w4a4", "w4a4", paper_parts.PLAIN))
    assert found.rejected and found.note == "rejected: the loss is 9 at step 1" and found.num_images == 8


# ---- claims


def bits(paper_top1, ours, **before):
    known = {"plain rounding": 10.0, "DFQ": 70.0, "SQuant": 60.0, "ZeroQ": 50.0, **before}
    return [row(method=m, top1=t) for m, t in {**known, "paper": paper_top1, "ours": ours}.items()]


def test_points_over_the_best_before():
    found = bits(69.0, 80.5)
    assert paper_claims.gain(found, NETWORK, "w8a8-tensor", "paper") == "-1.0 ± 0.4 over DFQ"
    assert paper_claims.gain(found, NETWORK, "w8a8-tensor", "ours") == "+10.5 ± 0.4 over DFQ"
    assert paper_claims.gain(found[1:], NETWORK, "w8a8-tensor", "paper") == "-", "the best of all, or none"


def test_times_the_sparsity_of_the_better_magnitude():
    lost = {"magnitude, one threshold": (4.0, 9.0), "magnitude, each layer": (1.0, 3.0), "paper": (3.0, 9.0)}
    found = [
        accuracy.Row(
            NETWORK, f"{share} %", name, 0, 100, 81.0, 81.0 - points, points, 0.3, 90.0, 0.1, 1.0, commit="new"
        )
        for name, both in lost.items()
        for share, points in zip((30, 50), both, strict=True)
    ]
    assert paper_claims.factor(found, NETWORK, "paper") == "0.5 (20 % / 40 %)"
    assert paper_claims.factor(found, NETWORK, "ours") == "-"


def test_passes_to_the_same_accuracy():
    found = [
        row("cost", "paper", "w4a4", 70.0, forward_passes=100.0),
        row("cost", "ours, propagated", "w4a4", 80.0, forward_passes=50.0),
        row("cost", "ours, 25 steps", "w4a4", 79.0, forward_passes=500.0),
        row("cost", "DI, 200 + 50 steps", "w4a4", 69.0, forward_passes=1000.0),
        row("cost", "DI, 500 + 50 steps", "w4a4", 71.0, forward_passes=3000.0, commit="older"),
        row("cost", "DI, our images, 25 + 200 steps", "w4a4", 80.0, forward_passes=200.0),
    ]
    assert paper_claims.times(found, NETWORK, "DI", "paper") == "30.0 (71.0 / 70.0) †"
    assert paper_claims.times(found, NETWORK, "DI", "ours") == "> 60.0 (71.0 / 80.0) †"
    assert paper_claims.times(found, NETWORK, "AKD", "paper") == "-"


def test_rejected_rows_answer_no_claim(tmp_path):
    found = [*bits(69.0, 80.5), row("cost", "DI, 200 + 50 steps", "w4a4", 0.0, note="rejected: it diverges")]
    lines = paper_claims.claims(found, tmp_path)
    assert lines[0] == "| | the paper says | resnet20 |"
    assert "| points over the best before, 8 bits, paper | +0.34 | -1.0 ± 0.4 over DFQ |" in lines
    assert "| passes of DI to the accuracy of paper | 450 | - |" in lines


# ---- tables


def test_cells_say_what_training_did():
    kept = row("combination", note="kl on images held out 1 -> 1 after 0 of 9 steps: nothing gained, the start is kept")
    assert paper_pages._top1(kept) == "80.0 ± 0.3 (90) (start kept)"
    assert paper_pages._top1(row(note="rejected: it diverges")) == "rejected"
    assert paper_pages._top1(row(commit="older")) == "80.0 ± 0.3 (90) †"


def test_blank_cells_carry_their_reason():
    found = [row(method=m, preset=p) for p in ("w8a8", "w8a8-tensor") for m in ("DFQ", "paper") if m != p]
    page = paper_pages.bits_block([r for r in found if (r.method, r.preset) != ("paper", "w8a8")], Path())
    assert "| w8a8 | 80.0 ± 0.3 (90) | (a) |\n| w8a8-tensor | 80.0 ± 0.3 (90) | 80.0 ± 0.3 (90) |" in page
    assert "(a) the paper's way, one scale a tensor" in page


def test_rows_nothing_declares_are_left_out_and_blocks_without_rows_say_so():
    assert paper_pages.declared([row("cost", "DI, 50 steps", "w4a4"), row()]) == [row()]
    assert paper_pages.cost_block([row()], Path()) == "Not run yet.\n"


def test_combinations_have_starts_down_and_ways_across():
    found = [
        row("combination", "none from ours", "prune50"),
        row("combination", "DI, kl from magnitude of each layer", "prune50"),
        row("combination", "DI, kl from ours", "prune50", note="rejected: it diverges"),
    ]
    page = paper_pages.combination_block(found, Path())
    assert "| | DI, kl | none |" in page
    assert "| ours | rejected | 80.0 ± 0.3 (90) |" in page and "| paper | - | - |" in page


def test_a_plot_is_drawn_of_every_part_that_has_rows(tmp_path):
    found = [row(), row(preset="w8a8", method="DFQ"), row("cost", "paper", "w4a4")]
    found += [row("sparsity", "ours", "prune50", note="rejected: it diverges")]
    drawn = plots.draw(found, tmp_path)
    assert [path.name for path in drawn] == [f"paper-{NETWORK}-cost.svg", f"paper-{NETWORK}-bits.svg"]
    assert "DFQ" not in drawn[1].read_text(), "only the rows that all methods are in"


def test_the_ablations_groups_share_the_papers_row(tmp_path):
    known = (0, 100, 81.0, 80.0, 1.0, 0.3, 90.0, 0.1, 1.0)
    for name in (ablation.WHOLE, "equalization: none"):
        found = accuracy.Row(NETWORK, "paper-w8a8", name, *known)
        rows.append_row(tmp_path / "ablation.jsonl", vars(found))
    page = ablation.page(tmp_path)
    assert page.count("1.0 ± 0.3 (90)") == 4, "three groups show the preset as it is, one row has a change"
    assert "| training: trained (the paper's) | 1.0 ± 0.3 (90) |" in page and "zeros" not in page.split("w4a8")[0][900:]
