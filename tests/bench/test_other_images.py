"""EfficientNet-Lite0 without the folder of trained networks: on images of a user's own, or on procedural ones."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
from bench import arguments, rows
from bench.networks import other_images, trained
from bench.networks.efficientnet_lite0 import MEAN, SIDE, STD
from bench.networks.other_images import OtherImages, labelled, procedural
from bench.networks.trained import LITE
from bench.tables import accuracy, claim, zoo
from bench.tables.accuracy import Cell, Subject, Way
from datafree.extras import install
from datafree.images import ImagesError
from nets import NETS

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm lists WordNet ids")


def asked_for(folder, *networks, data=None):
    """What scripts are asked, where the folder of trained networks is not there."""
    threads = torch.get_num_threads()
    return argparse.Namespace(networks=list(networks), out=folder, zoo=folder, threads=threads, data=data)


@pytest.fixture
def packages(monkeypatch):
    """EfficientNet-Lite0's packages need not be there to see what its images are."""
    monkeypatch.setitem(trained.PACKAGES, LITE, ())


@pytest.fixture
def few_leaves(monkeypatch):
    """Three procedural images."""
    monkeypatch.setattr(other_images, "NUM_PROCEDURAL", 3)
    other_images._leaves.cache_clear()
    yield
    other_images._leaves.cache_clear()


def pictures(folder, *classes, each=2):
    """Small pictures of one grey each, 10 * position + number; class names as given."""
    image = pytest.importorskip("PIL.Image")
    for position, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            image.new("RGB", (4, 4), (10 * position + number,) * 3).save(folder / name / f"{number}.png")
    return folder


def greys(x):
    """The pixels in 0..255 that images are made of."""
    return (x[:, 0, 0, 0] * 128 + 127).round().int().tolist()


# ---- which images there are


def test_networks_of_a_folder_that_is_not_there_are_skipped_and_others_are_not(tmp_path, packages, capsys):
    options = asked_for(tmp_path, LITE, "resnet20_cifar10", "resnet8_cifar10", "resnet_digits")
    trained.open_networks(options)
    assert options.networks == [LITE, "resnet_digits"]
    assert "skipped: resnet20_cifar10, resnet8_cifar10: " in (said := capsys.readouterr().out)
    assert "holds no zoo.py; give the folder of the networks with --zoo" in said


def test_without_images_there_are_procedural_ones_and_no_labels(tmp_path, packages, few_leaves, capsys):
    opened = trained.open_networks(asked_for(tmp_path, LITE))
    assert opened.measured_on(LITE).startswith("procedural images") and not opened.has_labels(LITE)
    assert opened.num_images(LITE, 2) == 2 and opened.num_images(LITE) == 3
    assert not opened.has_spare(LITE, 2)
    assert "agreement alone, what top-1 loses is not known; such rows are in no table" in capsys.readouterr().out


def test_procedural_images_are_pixels_and_others_than_a_bench_compresses_with(few_leaves):
    x, y = procedural().first(2)
    pixels = x * torch.tensor(STD).view(-1, 1, 1) + torch.tensor(MEAN).view(-1, 1, 1)
    assert x.shape == (2, 3, SIDE, SIDE) and len(y) == 2
    assert pixels.amin() >= -1e-6 and pixels.amax() <= 1 + 1e-6
    assert torch.allclose(255 * pixels, (255 * pixels).round(), atol=1e-3)
    options = arguments.table_parser("", presets=[], rows=[]).parse_args([])
    assert other_images.SEED not in options.seeds


def test_images_of_a_user_are_for_one_network(tmp_path, packages, capsys):
    options = asked_for(tmp_path, LITE, "resnet_digits", data=pictures(tmp_path / "mine", "3"))
    opened = trained.open_networks(options)
    assert options.networks == [LITE] and opened.measured_on(LITE).startswith("mine ")
    assert "skipped: resnet_digits: --data gives images to efficientnet_lite0 alone" in capsys.readouterr().out


def test_images_that_cannot_be_read_end_the_script_with_one_line(tmp_path, packages):
    with pytest.raises(SystemExit, match=r"--data: images .*nothing do not exist; give a folder of CLASS"):
        trained.open_networks(asked_for(tmp_path, LITE, data=tmp_path / "nothing"))


# ---- images on disk


def test_folders_are_class_indices_and_images_come_mixed_but_always_alike(tmp_path):
    images = labelled(pictures(tmp_path / "mine", "7", "999", "12", each=4))
    x, y = images.first(12)
    classes = {10 * position + number: label for position, label in enumerate((7, 999, 12)) for number in range(4)}
    assert [classes[grey] for grey in greys(x)] == y.tolist() and sorted(classes) == sorted(greys(x))
    assert greys(x) != sorted(greys(x)) and x.shape == (12, 3, SIDE, SIDE)
    again, labels = labelled(tmp_path / "mine").first(5)
    assert torch.equal(again, x[:5]) and torch.equal(labels, y[:5])


def test_an_archive_gives_the_same_images_as_a_folder(tmp_path):
    pixels = np.arange(6, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    np.savez(tmp_path / "mine.npz", x=pixels, y=np.arange(100, 106))
    images = labelled(tmp_path / "mine.npz")
    x, y = images.first(4)
    assert images.count == 6 and len(x) == 4 and [100 + grey for grey in greys(x)] == y.tolist()


@needs_timm
def test_folders_may_be_wordnet_ids(tmp_path):
    images = labelled(pictures(tmp_path, "n01440764", "n15075141", each=1))
    assert sorted(images.first(2)[1].tolist()) == [0, 999], "the first and the last class"


@pytest.mark.parametrize("name", ["cats", pytest.param("n00000000", marks=needs_timm), "1000"])
def test_a_folder_that_is_no_class_is_named(tmp_path, name):
    with pytest.raises(ImagesError, match=f"the (folder|label) '?{name}'? is no class of ImageNet; .* 0 to 999"):
        labelled(pictures(tmp_path, name))


def test_wordnet_ids_need_timm(tmp_path, monkeypatch):
    other_images._synsets.cache_clear()
    monkeypatch.setattr(other_images, "SYNSETS", Path("not there"))
    with pytest.raises(ImagesError, match=rf"named by WordNet ids.*{re.escape(install('models'))}, or name folders"):
        labelled(pictures(tmp_path, "n01440764"))


def test_other_pictures_have_another_name(tmp_path):
    first, same, other = (pictures(tmp_path / str(i) / "val", "3", each=each) for i, each in enumerate((2, 2, 3)))
    told = [labelled(path).told for path in (first, same, other)]
    assert told[0] == told[1] != told[2] and all(t.startswith("val ") for t in told)


# ---- rows


@pytest.mark.parametrize(
    "evaluated, count, spare", [(872, 1000, True), (100, 1000, True), (873, 2000, False), (10, 999, False)]
)
def test_real_rows_take_images_that_are_not_evaluated_on(evaluated, count, spare):
    images = OtherImages("mine", count, True, lambda n: (torch.zeros(n), torch.zeros(n)))
    opened = trained.Networks({}, {LITE: images})
    assert opened.has_spare(LITE, evaluated) == spare
    assert len(opened.images(LITE)[0]) == 1000


def tiny_subject(*, has_labels):
    """A network of three classes on four images that are not its own."""
    model, (x,) = NETS["residual"]()
    shown = torch.randn(4, *x.shape[1:], generator=torch.Generator().manual_seed(0))
    images = OtherImages("mine 01", 4, has_labels, lambda n: (shown[:n], torch.zeros(n).long()))
    return Subject(trained.Networks({LITE: SimpleNamespace(load=lambda name: model)}, {LITE: images}), LITE, 4)


def measured(subject, tmp_path):
    cell = Cell("w8a8", "ours", Way(("signal.images=2",)), 0, "w8a8")
    return accuracy.measure(subject, cell, argparse.Namespace(set=[], cache=tmp_path))


def test_a_row_without_labels_has_agreement_alone_and_says_so(tmp_path):
    found = measured(tiny_subject(has_labels=False), tmp_path)
    assert (found.float_top1, found.top1, found.lost, found.lost_error) == (None,) * 4 and found.agreement >= 0
    assert f"agreement {found.agreement:.1f} % on 4 mine 01, " in str(found)
    assert str(found).endswith("; no labels, so top-1 is not known")
    rows.append_row(tmp_path / "zoo.jsonl", vars(found))
    assert json.loads((tmp_path / "zoo.jsonl").read_text())["lost"] is None


def test_rows_on_other_images_are_in_no_table_and_are_not_made_again(tmp_path):
    found = measured(tiny_subject(has_labels=True), tmp_path)
    assert found.data == "mine 01" and "4 images of mine 01" in str(found) and found.lost is not None
    rows.append_row(tmp_path / "zoo.jsonl", vars(found))
    assert accuracy.written(tmp_path, "zoo") == []
    [again] = accuracy.written(tmp_path, "zoo", data="mine 01")
    assert again.key == found.key


def test_rows_that_cannot_have_real_images_are_left_out_and_said(capsys):
    asked = [Cell("w8a8", name, zoo.WAYS[name], 0, "w8a8") for name in ("ours", "real, as many")]
    left = list(accuracy.possible(asked, tiny_subject(has_labels=True)))
    assert [cell.row for cell in left] == ["ours"]
    assert "efficientnet_lite0, real, as many: too few images beside" in capsys.readouterr().out


def test_zeros_are_not_stepped_through_without_labels(capsys):
    options = argparse.Namespace(rows=["ours"], seeds=[0])
    assert list(claim.asked(tiny_subject(has_labels=False), options)) == []
    assert "points lost need labels; give images with --data" in capsys.readouterr().out
