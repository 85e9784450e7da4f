"""Files and folders appear whole or not at all."""

from __future__ import annotations

import errno
import os

import pytest
import torch
from safetensors import safe_open

from datafree.execution.atomic import UnwritableError, UnwrittenError, atomic_write, check_writable
from datafree.execution.tensor_files import save_tensors


def test_folders_on_the_way_are_made_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "deep" / "net.bin"
    with atomic_write(path) as place:
        place.write_bytes(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("before", [b"old", None])
def test_an_error_leaves_what_was_there(tmp_path, before):
    path = tmp_path / "net.bin"
    if before:
        path.write_bytes(before)
    with pytest.raises(OSError, match="no space"), atomic_write(path) as place:
        place.write_bytes(b"half")
        raise OSError("no space")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([before] if before else [])


def test_a_folder_takes_the_place_of_another(tmp_path):
    path = tmp_path / "run"
    for name in ("first", "second"):
        with atomic_write(path) as place:
            place.mkdir()
            (place / name).write_text(name)
    assert [p.name for p in path.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("before", [("net", "net.data", "of another"), ("net", "of another"), ("of another",)])
@pytest.mark.parametrize("now", [("net", "net.data"), ("net",)])
def test_companions_are_replaced_or_gone_together_with_it(before, now, tmp_path):
    for name in before:
        (tmp_path / name).write_text("old")
    with atomic_write(tmp_path / "net", companions=["net.data"]) as place:
        for name in now:
            place.with_name(name).write_text("new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"of another": "old", **dict.fromkeys(now, "new")}


def test_an_error_leaves_companions_as_they_were(tmp_path):
    for name in ("net", "net.data"):
        (tmp_path / name).write_text("old")
    with pytest.raises(OSError, match="no space"), atomic_write(tmp_path / "net", companions=["net.data"]) as place:
        place.with_name("net.data").write_text("half")
        raise OSError("no space")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"net": "old", "net.data": "old"}


@pytest.mark.parametrize(
    "number, advice",
    [(errno.ENOSPC, "make room there"), (errno.EDQUOT, "make room there"), (errno.EROFS, "choose another place")],
)
def test_no_room_and_a_disk_that_fails_say_what_was_not_written(number, advice, tmp_path):
    said = rf"^{tmp_path}/net was not written: {os.strerror(number)}; {advice}$"
    with pytest.raises(UnwrittenError, match=said), atomic_write(tmp_path / "net") as place:
        place.write_bytes(b"half")
        raise OSError(number, os.strerror(number))
    assert [*tmp_path.iterdir()] == []


def test_other_errors_stay_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "net"):
        (tmp_path / "nothing").read_bytes()


@pytest.mark.parametrize("place", ["file/net", "file/deep/net"])
def test_a_place_for_nothing_is_named(place, tmp_path):
    (tmp_path / "file").touch()
    said = rf"^nothing can be written into {(tmp_path / place).parent}: .*; choose another place$"
    with pytest.raises(UnwritableError, match=said), atomic_write(tmp_path / place):
        raise AssertionError("there is no place")


def test_a_folder_is_tried_and_left_as_it_was(tmp_path):
    check_writable(tmp_path)
    assert [*tmp_path.iterdir()] == []
    (tmp_path / "file").touch()
    with pytest.raises(UnwritableError, match="choose another place"):
        check_writable(tmp_path / "file")


def test_tensors_that_cannot_be_written_are_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        save_tensors({"x": torch.zeros(2)}, tmp_path / "nowhere" / "x.safetensors")


def test_tensors_are_written_to_the_same_bytes_each_time(tmp_path):
    """What is written beside them comes in another order each time from safetensors itself."""
    tensors, beside = {"a": torch.arange(6.0).view(2, 3)}, {name: f'{{"ü\\n": "{name}"}}' for name in "zyxwvutsr"}
    found = set()
    for number in range(8):
        save_tensors(tensors, tmp_path / f"{number}.safetensors", beside)
        found.add((tmp_path / f"{number}.safetensors").read_bytes())
    assert len(found) == 1
    with safe_open(tmp_path / "0.safetensors", "pt") as file:
        assert file.metadata() == beside and file.get_tensor("a").equal(tensors["a"])
