"""Rows of benches: old ones are told from current ones, resumed benches skip, pages say what the rows say."""

from __future__ import annotations

import argparse
import json
import subprocess
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("sklearn")
from bench import rows
from bench.networks import real_images, trained
from bench.networks.real_images import REFERENCES, Real
from bench.tables import (
    accuracy,
    claim,
    digits,
    export_pages,
    folding,
    guard,
    markdown,
    methods,
    packed_bytes,
    prune,
    render,
    row_times,
    targets,
    zoo,
)
from bench.tables.accuracy import Cell, Row, Way
from datafree import Recipe, compress
from nets import NETS


def row(network="resnet20_cifar10", preset="w4a8", name="ours", seed=0, lost=1.0, commit="new", **more):
    known = {"num_images": 100, "float_top1": 80.0, "top1": 80.0 - lost, "lost_error": 0.5, "agreement": 90.0}
    known |= {"bytes_ratio": 0.1, "seconds": 3.0, **more}
    return Row(network, preset, name, seed, lost=lost, commit=commit, **known)


@pytest.fixture
def new_is_current(monkeypatch):
    """Rows of the commit "new" are current, others old."""
    monkeypatch.setattr(rows, "is_current", lambda commit: commit == "new")
    monkeypatch.setattr(rows, "STARTED_AT", "new")


# ---- commits


@pytest.fixture
def repository(tmp_path, monkeypatch):
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("1\n")
    git(tmp_path, "init", "--quiet")
    committed(tmp_path)
    return tmp_path


def git(folder, *arguments):
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def committed(folder, message="a change"):
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", message)
    return rows.commit(folder)


def test_a_row_is_current_until_src_changes(repository):
    made_by = rows.commit(repository)
    (repository / "page.md").write_text("text\n")
    later = committed(repository)
    assert later != made_by and rows.is_current(made_by, repository) and rows.is_current(later, repository)
    (repository / "src" / "a.py").write_text("2\n")
    rows.changed_since.cache_clear()
    assert rows.is_current(committed(repository), repository) and not rows.is_current(made_by, repository)


@pytest.mark.parametrize(
    "messages, current",
    [
        (["move a\n\nResults: unchanged"], True),
        (["move a\n\nResults: unchanged", "a change"], False),
        (["a change", "move a\n\nResults: unchanged"], False),
        (["move a\n\nResults: changed"], False),
    ],
)
def test_a_row_outlives_commits_that_change_no_result(repository, messages, current):
    made_by = rows.commit(repository)
    for number, message in enumerate(messages):
        (repository / "src" / "a.py").write_text(f"another {number}\n")
        committed(repository, message)
    assert rows.is_current(made_by, repository) == current


@pytest.mark.parametrize(
    "fields, current",
    [
        ({"network": "a", "images_commit": "abc"}, False),
        ({"network": "a"}, True),
        ({"network": "b", "images_commit": "abc"}, True),
    ],
    ids=["made with such images", "made without images", "another network"],
)
def test_other_images_make_rows_old_that_were_made_with_them(repository, monkeypatch, fields, current):
    made_by = rows.commit(repository)
    (repository / "src" / "a.py").write_text("2\n")
    committed(repository, "images in parts\n\nResults: images of a c")
    (repository / "src" / "a.py").write_text("3\n")
    committed(repository, "move a\n\nResults: unchanged")
    changed = rows.changed_since(made_by, repository)
    assert changed.images_of == {"a", "c"} and not rows.is_current(made_by, repository)
    monkeypatch.setattr(rows, "changed_since", lambda *_: changed)
    assert rows.is_row_current(row(commit=made_by, **fields)) == current
    unknown = SimpleNamespace(commit=made_by, network=fields["network"])  # a row that does not say what made its images
    assert rows.is_row_current(unknown) == (fields["network"] == "b")


def test_another_way_of_a_preset_makes_its_rows_old(repository, monkeypatch):
    made_by = rows.commit(repository)
    (repository / "src" / "a.py").write_text("2\n")
    committed(repository, "channels in another order\n\nResults: presets nm24")
    changed = rows.changed_since(made_by, repository)
    assert changed.presets == {"nm24"} and not changed.images_of
    monkeypatch.setattr(rows, "changed_since", lambda *_: changed)
    found = [rows.is_row_current(row(commit=made_by, preset=name)) for name in ("nm24", "prune50")]
    assert found == [False, True]


def test_a_row_of_another_branch_is_old(repository):
    git(repository, "checkout", "--quiet", "-b", "other")
    (repository / "src" / "a.py").write_text("2\n")
    made_by = committed(repository)
    git(repository, "checkout", "--quiet", "-")
    assert not rows.is_current(made_by, repository)


@pytest.mark.parametrize("name, mark", [("src/a.py", "+"), ("src/new.py", "+"), ("bench.py", "")])
def test_changes_under_src_are_told(repository, name, mark):
    head = rows.commit(repository)
    (repository / name).write_text("3\n")
    assert rows.commit(repository) == head + mark


def test_rows_nobody_can_make_again_are_old(repository):
    head = rows.commit(repository)
    assert rows.is_current(head, repository)
    assert not any(rows.is_current(made_by, repository) for made_by in (head + "+", "0123456", ""))


def test_rows_of_a_package_from_elsewhere_are_old(repository):
    assert rows.loaded_commit(repository) == rows.commit(repository) + "+"


def test_without_git_all_is_old(tmp_path):
    assert rows.commit(tmp_path) == "" and not rows.is_current("0123456", tmp_path)


# ---- files


def test_rows_carry_the_commit_and_the_last_of_a_key_wins(tmp_path, new_is_current):
    path = tmp_path / "zoo.jsonl"
    for lost in (1.0, 2.0):
        rows.append_row(path, vars(row(lost=lost, commit="")))
    [found] = accuracy.written(tmp_path, "zoo")
    assert (found.lost, found.commit) == (2.0, "new")


def test_rows_without_commit_and_with_other_fields_are_read(tmp_path):
    line = {name: value for name, value in vars(row()).items() if name != "commit"}
    (tmp_path / "zoo.jsonl").write_text(json.dumps({**line, "extra": 1}) + "\n")
    [found] = accuracy.written(tmp_path, "zoo")
    assert found.commit == "" and not rows.is_current(found.commit)


def test_rows_of_other_settings_are_in_no_table(tmp_path):
    rows.append_row(tmp_path / "zoo.jsonl", vars(row(settings="weights.bits=3")))
    assert accuracy.written(tmp_path, "zoo") == []
    assert len(accuracy.written(tmp_path, "zoo", "weights.bits=3")) == 1


# ---- resuming


@pytest.fixture
def bench(tmp_path, monkeypatch, new_is_current):
    """Fill a table without compressing: what was measured, and a function that does."""
    seen = []

    def measure(subject, cell, options):
        seen.append((cell.preset, cell.row, cell.seed))
        return row(subject.name, cell.preset, cell.row, cell.seed, num_images=subject.count)

    def fill(**more):
        seen.clear()
        known = {"networks": ["resnet_digits"], "presets": ["w8a8"], "rows": ["a", "b"], "seeds": [0, 1], "images": 50}
        known |= {"set": [], "again": False, "out": tmp_path, "threads": torch.get_num_threads(), "data": None}
        ways = {"a": Way(), "b": Way(random=False)}
        accuracy.fill_table(argparse.Namespace(**{**known, **more}), "zoo", ways, zoo.page)
        return list(seen)

    monkeypatch.setattr(accuracy, "measure", measure)
    return fill


def test_rows_on_file_are_not_made_again(bench, tmp_path):
    assert bench(rows=["a"]) == [("w8a8", "a", 0), ("w8a8", "a", 1)]
    assert bench() == [("w8a8", "b", 0)]
    assert bench() == []
    assert len(bench(again=True)) == 3
    assert "### resnet_digits" in (tmp_path / "zoo.md").read_text()


def test_rows_of_old_code_or_fewer_images_are_made_again(bench, monkeypatch):
    bench()
    assert len(bench(images=60)) == 3
    monkeypatch.setattr(rows, "is_current", lambda commit: False)
    assert len(bench(images=60)) == 3


def test_a_network_without_its_packages_is_skipped_and_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(trained.PACKAGES, "mobilenet_digits", ("no_such_package",))
    options = argparse.Namespace(networks=["resnet_digits", "mobilenet_digits"], out=tmp_path, zoo=tmp_path, data=None)
    options.threads = torch.get_num_threads()
    opened = trained.open_networks(options)
    assert list(opened.sources) == options.networks == ["resnet_digits"]
    assert "skipped: mobilenet_digits: needs no_such_package" in capsys.readouterr().out


# ---- real images


@pytest.fixture
def tiny200():
    """Two thousand images, each of its own number."""
    x = torch.arange(2000.0).view(-1, 1, 1, 1)
    module = SimpleNamespace(images=lambda name, n=None: (x[:n], x[:n].flatten().long()))
    return trained.Networks({"mobilenetv2_tiny200": module})


def test_real_images_are_drawn_by_seed_from_those_never_evaluated_on(tiny200):
    real = REFERENCES["real, 512"]
    first, again, other = (real.draw(tiny200, "mobilenetv2_tiny200", seed=s).flatten().tolist() for s in (0, 0, 1))
    assert first == again and set(first) != set(other)
    assert len(set(first)) == 512 and min(first) >= trained.NETWORKS["mobilenetv2_tiny200"]


def test_where_all_are_taken_every_draw_is_the_same(tiny200):
    real = Real("real", 1000, False)
    draws = [real.draw(tiny200, "mobilenetv2_tiny200", seed=seed) for seed in (0, 1)]
    assert real.is_all("mobilenetv2_tiny200") and torch.equal(*draws)
    found = accuracy.cells("resnet20_cifar10", ["w8a8"], zoo.WAYS, [0, 1], accuracy.never)
    assert [cell.seed for cell in found if cell.row == "real, as many"] == [0]


@pytest.mark.parametrize(
    "network, name, reason",
    [
        ("resnet20_cifar10", "real, as many", ""),
        ("resnet20_cifar10", "real, 128", "ours makes 128 images here"),
        ("resnet20_cifar10", "real, 512", "only 128 images are never evaluated on"),
        ("efficientnet_lite0", "real, 128", ""),
        ("efficientnet_lite0", "photographs, 128", "unlike those it was trained on"),
        ("mobilenetv2_tiny200", "real, 512", ""),
        ("mobilenetv2_tiny200", "photographs, as many", ""),
    ],
)
def test_reference_rows_that_cannot_be_say_why(network, name, reason):
    found = REFERENCES[name].missing(network)
    assert reason in found and bool(reason) == bool(found)


def test_as_many_is_what_inverted_makes():
    asked = ("resnet20_cifar10", "mobilenetv2_tiny200", "mobilenetv1_025_vww", "efficientnet_lite0")
    assert [real_images.as_many(network) for network in asked] == [128, 64, 74, 64]


@pytest.mark.parametrize(
    "bench", [zoo, prune, claim, methods, guard, folding, targets], ids=lambda module: module.__name__
)
def test_rows_are_recipes(bench):
    for way in bench.WAYS.values():
        assert Recipe.preset("prune50").updated(list(way.settings))


def test_all_scales_are_taken_only_while_asked_for():
    model, x = NETS["residual"]()
    recipe = Recipe.preset("w8a8-tensor").updated(["signal.images=2", "solve.method=nearest"])
    guarded = compress(model, recipe, x).summary.equalization
    with guard.unguarded():
        assert not compress(model, recipe, x).summary.equalization.dropped
    assert compress(model, recipe, x).summary.equalization == guarded


def test_images_stay_unmoved_only_while_asked_for():
    model, x = NETS["no batchnorm at all"]()
    recipe = Recipe.preset("w8a8").updated(["signal.images=2"])
    with folding.unmoved():
        assert compress(model, recipe, x).summary.signal.towards == ""
    assert compress(model, recipe, x).summary.signal.towards == "random classes"


# ---- tables


def test_old_cells_are_marked_and_current_rows_replace_them(new_is_current):
    assert markdown.lost([row()]) == "1.0 ± 0.5 (90)"
    assert markdown.lost([row(commit="older")]) == "1.0 ± 0.5 (90) †"
    both = [row(seed=0, lost=1.0, commit="older"), row(seed=1, lost=2.0)]
    assert markdown.lost(markdown.select(both, "resnet20_cifar10", "w4a8", "ours")) == "2.0 ± 0.5 (90)"


def test_a_page_names_the_commits_of_its_rows(new_is_current):
    assert rows.commits_note([row()]) == "Rows of commit new."
    assert rows.commits_note([row(), row(commit="abc"), row(commit="")]) == (
        "Rows of commit new. † made by older code (commit not kept, commit abc)."
    )


def test_a_page_names_the_commits_of_its_images(new_is_current):
    found = markdown.page("note", [row(images_commit="abc", seed=2), row()], ["| table |"])
    assert found == "note\n\nSeeds 0, 2. Rows of commit new. Images of commit abc.\n| table |\n"


def test_blank_cells_carry_their_reason(new_is_current):
    found = [row(preset=p, name=n) for p in ("nm24", "prune50") for n in ("a", "b") if (p, n) != ("nm24", "a")]
    why = lambda preset, name: "there are no such cells" if (preset, name) == ("nm24", "a") else ""  # noqa: E731
    assert markdown.ways(found[:-1], "resnet20_cifar10", ["prune50", "nm24"], ["a", "b", "c"], why) == [
        "| | a | b |",
        "|---|---|---|",
        "| prune50 | 1.0 ± 0.5 (90) | - |",
        "| nm24 | (a) | 1.0 ± 0.5 (90) |",
        "\n(a) there are no such cells",
    ]


def test_the_short_table_has_networks_across_and_the_better_reference(new_is_current):
    found = [row(name="plain rounding", lost=9.0), row(), row(name="real, as many", lost=2.0)]
    found += [row(name="real, as many, re-standardised", lost=0.5), row("efficientnet_lite0", commit="abc")]
    assert markdown.short(found, ["w4a8"], zoo.SHORT) == [
        "| | efficientnet lite0, 100 images | resnet20, 100 images |",
        "|---|---|---|",
        "| w4a8 | - / 1.0 / - † | 9.0 / 1.0 / 0.5 |",
    ]


def test_the_first_paragraph_tells_presets_with_both_rows(new_is_current):
    network = "efficientnet_lite0"
    found = [row(network, name="plain rounding", lost=9.0), row(network), row(network, preset="w8a8-tensor"), row()]
    assert render.first_paragraph(found) == (
        f"On EfficientNet-Lite0, which has {found[0].float_top1:.1f} % top-1 on {found[0].num_images} photographs:\n"
        "with weights of 4 bits (`w4a8`) plain rounding loses 9.0 points and `datafree` 1.0.\n"
    )


def test_what_is_lost_is_read_along_a_straight_line(new_is_current):
    found = [row(preset="30 %", lost=1.0), row(preset="40 %", lost=5.0), row(preset="50 %", lost=1.0)]
    reach = claim.reach(found, "resnet20_cifar10", "ours")
    assert reach is not None and reach.sparsity == pytest.approx(32.5)
    assert str(reach) == "32 % (30 %: 1.0; 40 %: 5.0)"
    assert claim.reach(found[:1], "resnet20_cifar10", "ours") is None


def test_zeros_grow_until_two_points_are_lost(tmp_path, new_is_current):
    options = argparse.Namespace(rows=["ours"], seeds=[0], out=tmp_path, set=[])
    asked = []
    for cell in claim.stepped("resnet20_cifar10", options):
        assert isinstance(cell, Cell)
        asked.append(cell.preset)
        lost = 3.0 if cell.preset == "25 %" else 0.0
        rows.append_row(tmp_path / "claim.jsonl", vars(row(preset=cell.preset, lost=lost)))
    assert asked == ["10 %", "20 %", "25 %"]


def test_efficientnet_lite0_comes_first():
    assert markdown.networks_of([row("resnet20_cifar10"), row("efficientnet_lite0")])[0] == "efficientnet_lite0"
    assert list(trained.NETWORKS)[0] == "efficientnet_lite0"  # noqa: RUF015


# ---- pages


def test_pages_say_what_the_rows_say():
    old = [path for path, text in render.pages(rows.ROOT) if render.undated(path.read_text()) != render.undated(text)]
    assert old == [], "run python -m bench.tables.render"


def test_tables_of_files_that_no_bench_of_accuracy_makes(tmp_path, new_is_current):
    """Packed bytes, the digits of the demo, how near files are, and how long rows take."""
    made = {"model": "torchvision:resnet18", "row": "int8", "float_bytes": 4000, "bytes": 1000, "squeezed_bytes": 900}
    made |= {"seconds": [0.1, 0.1], "squeezed_seconds": [0.1, 0.1], "commit": "old"}
    digit = {"preset": "w8a8", "float_top1": 90.0, "top1": 80.0, "plain_rounding_top1": 20.0, "num_images": 900}
    digit |= {"bytes": 250, "float_bytes": 1000, "seconds": 1.5, "commit": "new"}
    near = {"network": "resnet20_cifar10", "preset": "w8a8", "images": 1500, "file_db": 120.4, "agreement": 100.0}
    slow, slower = (vars(row(seconds=s, commit="new")) for s in (3.0, 9.0))
    slower |= {"preset": "w8a8", "image_seconds": 40.0}
    for name, lines in {
        "packed_bytes": [{**made, "bytes": 2000}, made], "digits": [digit], "export": [near],
        "zoo": [slow, slower], "prune": [],
    }.items():  # fmt: skip
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "| int8 | 0.250 † |" in packed_bytes.block(tmp_path)
    told = digits.block(tmp_path)
    assert "| `w8a8` | 80.0 % | 20.0 % | 250 | 25.0 % | 1.5 s |" in told and "error of float32 is 1.0 points" in told
    assert "| resnet20 | 120 (100.0 %) † |" in export_pages.parity_block(tmp_path)
    assert "1,500 images" in export_pages.parity_block(tmp_path)
    assert "| resnet20 | 6 | - | 40 |" in row_times.block(tmp_path)


def test_a_marker_that_is_none_is_an_error():
    with pytest.raises(ValueError, match="there is no block <!-- zoo -->; blocks are zoo table"):
        render.filled("<!-- zoo -->\n<!-- end -->\n", rows.ROOT)


def test_a_block_without_rows_is_left_as_it_is(tmp_path):
    page = "a\n\n<!-- zoo table -->\n| old |\n<!-- end -->\n"
    assert render.filled(page, tmp_path) == page


def test_marks_and_commits_alone_make_no_difference():
    assert render.undated("a † |\nSeeds 0. Rows of commit abc.") == render.undated(
        "a |\nSeeds 0. † made by older code."
    )
    assert render.undated("a 1.0 |") != render.undated("a 2.0 |")
