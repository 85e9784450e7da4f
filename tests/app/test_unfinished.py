"""Work under way: what is kept of it, who goes on with it, when it goes."""

import os
import signal
import subprocess
import sys
import warnings

import pytest
import torch

from datafree.app.cli import main
from datafree.app.unfinished import Interrupted, Starved, kept_until_done, unfinished_work, work_folder
from datafree.execution import UnwrittenError, WorkerError
from datafree.run import RunError


@pytest.fixture
def folder(tmp_path):
    """Work that was stopped."""
    folder = tmp_path / "small.onnx.part"
    folder.mkdir()
    (folder / "job.json").write_text("{}")
    return folder


def test_the_same_command_goes_on(folder, capsys):
    assert work_folder(folder.with_suffix(""), restart=False) == folder
    assert f"going on with the work in {folder}; --restart begins anew" in capsys.readouterr().err
    assert folder.exists()


def test_restart_begins_anew(folder):
    assert work_folder(folder.with_suffix(""), restart=True) == folder
    assert not folder.exists()


def test_a_folder_of_something_else_is_left_alone(folder):
    (folder / "job.json").unlink()
    with pytest.raises(RunError, match=r"small.onnx.part is in the way and holds no unfinished work; choose another"):
        work_folder(folder.with_suffix(""), restart=True)


def test_what_is_done_leaves_no_folder(folder):
    with kept_until_done(folder):
        pass
    assert not folder.exists()


@pytest.mark.parametrize("error, kept", [(OSError, True), (ValueError, False), (KeyError, False)])
def test_work_stays_where_trying_again_may_help(folder, error, kept):
    with pytest.raises(error), kept_until_done(folder):
        raise error
    assert folder.exists() == kept


KEPT = r"small.onnx.part keeps the work so far: the same command goes on from there, with --restart it begins anew"


@pytest.mark.parametrize(
    "error, said",
    [
        (MemoryError(), "memory ran out"),
        (MemoryError("conv1: memory ran out"), "conv1: memory ran out"),
        (WorkerError("conv1: a process was killed"), "conv1: a process was killed"),
        (UnwrittenError("run was not written: no room"), "run was not written: no room"),
    ],
)
def test_want_of_memory_or_room_keeps_the_work_and_says_so(folder, error, said):
    with pytest.raises(Starved, match=f"^{said}; .*{KEPT}"), kept_until_done(folder):
        raise error
    assert folder.exists()


def test_memory_that_torch_asks_for_in_vain_keeps_the_work(folder):
    said = r"^memory ran out: 4,503,599,627,370,496 bytes were asked for at once; "
    with pytest.raises(Starved, match=said + f".*{KEPT}"), kept_until_done(folder):
        torch.empty(2**50)
    assert folder.exists()


def test_an_interrupted_job_says_how_to_go_on(folder):
    with pytest.raises(Interrupted, match=KEPT), kept_until_done(folder):
        raise KeyboardInterrupt
    assert folder.exists()


def test_where_nothing_is_kept_it_says_so(tmp_path):
    with pytest.raises(Interrupted, match="nothing was written"), kept_until_done(tmp_path / "none.part"):
        raise KeyboardInterrupt


def test_another_command_on_the_same_output_is_refused(tmp_path):
    out = tmp_path / "small.onnx"
    with unfinished_work(out, restart=False), pytest.raises(RunError) as caught, unfinished_work(out, restart=True):
        pass
    assert str(caught.value) == f"another command is writing {out}; wait for its end, or choose another --out"
    assert [*tmp_path.iterdir()] == []


def killed_at(out):
    """What a copy of this process ends with that begins to write there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of copies of a process with threads: this one does little
        child = os.fork()
    if not child:
        try:
            with unfinished_work(out, restart=False):
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="copies of a process are forks")
def test_the_lock_of_a_killed_command_holds_nobody_up(tmp_path):
    out = tmp_path / "run"
    assert killed_at(out) == -signal.SIGKILL
    with unfinished_work(out, restart=False) as folder:
        assert folder == tmp_path / "run.part"
    assert [*tmp_path.iterdir()] == []


def test_the_command_line_ends_in_one_line_and_130(tmp_path, monkeypatch, capsys):
    (tmp_path / "stopped_factory.py").write_text("def net():\n    raise KeyboardInterrupt\n")
    monkeypatch.chdir(tmp_path)
    assert main(["compress", "stopped_factory:net", "--out", "net.onnx"]) == 130
    assert capsys.readouterr().err == "error: interrupted; nothing was written\n"


@pytest.mark.parametrize(
    "module", ["datafree.app.cli", "datafree.pipeline", "torch", pytest.param("torch.export", marks=pytest.mark.slow)]
)
def test_a_command_interrupted_while_it_loads_is_one_line(module, tmp_path):
    code = f"""
import sys
class Interrupting:
    def find_spec(self, name, *rest):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
from datafree.__main__ import main
sys.exit(main())
"""
    arguments = [sys.executable, "-c", code, "compress", "demo", "--out", "net"]
    done = subprocess.run(arguments, cwd=tmp_path, text=True, capture_output=True)
    assert (done.returncode, done.stderr, done.stdout) == (130, "error: interrupted\n", "")
    assert [*tmp_path.iterdir()] == []


FACTORY = """
import os, signal, threading, time
from pathlib import Path
import torch
from torch import nn

def stop():
    while not Path("run.part/job.json").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)

def net():
    torch.manual_seed(0)
    if not Path("run.part").exists():
        threading.Thread(target=stop, daemon=True).start()
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten()).eval()
"""


def test_sigterm_leaves_work_that_the_same_command_goes_on_with(tmp_path, monkeypatch):
    (tmp_path / "stopped.py").write_text(FACTORY)
    asked = ["compress", "stopped:net", "--input", "1,3,16,16", "--recipe", "w4a8", "--out", "run", "--quiet"]
    asked += ["--set", "signal.images=8", "--set", "signal.steps=100", "--estimate", "none"]
    command = [sys.executable, "-m", "datafree", *asked]
    stopped = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)
    assert stopped.returncode == 143 and stopped.stdout == ""
    *_, line = stopped.stderr.splitlines()  # on a slow machine, of progress before
    assert line.startswith("error: terminated; run.part keeps the work so far: the same command goes on from there")
    monkeypatch.chdir(tmp_path)
    assert main(asked) == 0
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["run", "stopped.py"]
