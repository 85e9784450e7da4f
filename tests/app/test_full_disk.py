"""Where nothing can be written, or no more: one clear line, nothing half-written, and the same command goes on."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from datafree.app.cli import main

FACTORY = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 64, 3), nn.Flatten(),
    ).eval()
"""
ASKED = ["compress", "net_of_disk:net", "--input", "1,3,12,12", "--recipe", "w4a8", "--estimate", "none", "--quiet"]
ASKED += ["--set", "signal.images=4", "--set", "signal.steps=60"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current directory, with a small network."""
    (tmp_path / "net_of_disk.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def files_of_at_most(size):
    """What a full disk is to each file, without the rights to make one; Python would keep half of its own caches."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder):
    return {path.name for path in folder.iterdir()} - {"net_of_disk.py", "__pycache__"}


def contents(place):
    """Bytes of all that is no time."""
    files = [place] if place.is_file() else [place / f"{name}.safetensors" for name in ("student", "teacher", "signal")]
    return {file.name: file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What comes out where there is room."""
    here = tmp_path_factory.mktemp("whole")
    (here / "net_of_disk.py").write_text(FACTORY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        assert main([*ASKED, "--out", "run"]) == 0
        for file in ("net.onnx", "net.safetensors"):
            assert main(["export", "run", file, "--quiet"]) == 0
    return {name: contents(here / name) for name in ("run", "net.onnx", "net.safetensors")}


@pytest.mark.parametrize(
    "out, size, kept",
    [
        ("run", 100, False),
        pytest.param("run", 4000, True, marks=pytest.mark.slow),
        ("net.onnx", 24000, True),
        pytest.param("net.safetensors", 4000, True, marks=pytest.mark.slow),
    ],
)
def test_a_file_too_many_is_one_line_and_the_same_command_goes_on(out, size, kept, whole, here, capsys):
    with files_of_at_most(size):
        assert main([*ASKED, "--out", out]) == 1
    printed = capsys.readouterr()
    end = f"{out}.part keeps the work so far: the same command goes on from there, with --restart it begins anew"
    assert printed.err.count("\n") == 1 and printed.out == ""
    assert f" was not written: {os.strerror(27)}; make room there; " in printed.err
    assert printed.err.endswith(f"; {end if kept else 'nothing was written'}\n")
    assert names(here) == ({f"{out}.part"} if kept else set())
    assert main([*ASKED, "--out", out]) == 0
    assert names(here) == {out} and contents(here / out) == whole[out]


@pytest.fixture
def small_disk(here):
    """A file system of half a megabyte."""
    place = here / "disk"
    place.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", place], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("nothing can be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def test_a_full_disk_is_one_line_and_with_room_the_same_command_goes_on(small_disk, whole, capsys):
    (small_disk / "others").write_bytes(bytes(440_000))
    assert main([*ASKED, "--out", "disk/run"]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and f" was not written: {os.strerror(28)}; make room there; " in printed.err
    assert {path.name for path in small_disk.iterdir()} <= {"others", "run.part"}
    (small_disk / "others").unlink()
    assert main([*ASKED, "--out", "disk/run"]) == 0
    assert contents(small_disk / "run") == whole["run"]


COMMANDS = {
    "compress": [*ASKED, "--out"],
    "sweep": ["sweep", *ASKED[1:4], "--recipes", "w8a8", "--quiet", "--out"],
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("place", ["/proc/run", "/proc/sys/run", "net_of_disk.py/run", "net_of_disk.py/deep/run"])
def test_where_nothing_can_be_written_it_is_said_before_the_work(command, place, here, capsys):
    if place.startswith("/proc") and not Path(place).parent.exists():
        pytest.skip("there is no /proc here")
    assert main([*command, place]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "nothing can be written into " in printed.err
    assert "; choose another " in printed.err and names(here) == set()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_folder_without_permission_is_refused_before_the_work(command, here, capsys):
    (here / "shut").mkdir(mode=0o500)
    assert main([*command, "shut/run"]) == 2
    assert "nothing can be written into " in capsys.readouterr().err
