"""Other runtimes give the student's answer, each by its example; where one is not installed, the example says so."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from datafree import Recipe, compress
from datafree import graph as g
from nets import NETS

EXAMPLES = Path(__file__).parents[1].parent / "examples"


@pytest.fixture(scope="module")
def shared():
    """The functions that all examples use."""
    spec = spec_from_file_location("parity", EXAMPLES / "parity.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run():
    model, inputs = NETS["residual"]()
    return compress(model, Recipe.preset("w8a8").updated(["signal.images=2"]), inputs)


@pytest.fixture(scope="module")
def saved(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("backends") / "run"
    run.save(folder)
    return folder


def start(script, *arguments, **variables):
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)


def check(done):
    """A skip with its reason, or an answer that is the student's."""
    assert done.returncode == 0, done.stdout + done.stderr
    if not done.stdout.startswith("skipped: "):
        assert "dB, 100.0 % equal classes (" in done.stdout
        assert done.stdout.endswith("the backend's answer is the student's\n")


@pytest.mark.slow
@pytest.mark.parametrize("script", ["torch_compile.py", "openvino_run.py", "executorch_run.py", "litert_run.py"])
def test_demo_network_answers_as_the_student(script):
    check(start(script))


@pytest.mark.slow
@pytest.mark.parametrize("script", ["openvino_run.py", "executorch_run.py"])
def test_a_run_directory_is_taken(script, saved):
    check(start(script, saved))


@pytest.mark.slow
def test_a_missing_compiler_is_a_skip():
    done = start("torch_compile.py", CXX="no-such-compiler")
    assert (done.returncode, done.stdout) == (
        0, "skipped: no C++ compiler is installed; apt install g++, or name another one in CXX\n",
    )  # fmt: skip


def test_a_missing_package_is_a_skip(shared, capsys):
    shared.need("torch")
    with pytest.raises(SystemExit) as ended:
        shared.need("torch", "no_such_package")
    assert ended.value.code == 0
    assert capsys.readouterr().out == "skipped: no_such_package is not installed; pip install no_such_package\n"


def test_a_run_directory_brings_images_of_its_own_shape(shared, run, saved):
    loaded, images = shared.open_run([str(saved)])
    placeholder = next(node for node in loaded.student.graph.nodes if node.op == "placeholder")
    assert [x.shape for x in images] == [(32, *g.shape(placeholder)[1:])]
    assert torch.equal(loaded.student(*images), run.student(*images))


def test_the_student_is_its_own_answer(shared, run, saved, capsys):
    images = shared.open_run([str(saved)])[1]
    assert shared.compare(run.student, run, images) == 0
    assert "student inf dB, 100.0 % equal classes (32 images)" in capsys.readouterr().out


@pytest.mark.parametrize("answer", ["teacher", "shifted"])
def test_another_answer_is_exit_code_1(answer, shared, run, saved, capsys):
    """The float network is as far off as quantization itself; the other one is a wrong student."""
    images = shared.open_run([str(saved)])[1]
    wrong = {"teacher": run.teacher, "shifted": Shifted(run.student)}[answer]
    assert shared.compare(wrong, run, images) == 1
    assert capsys.readouterr().out.endswith("the backend's answer is not the student's\n")


class Shifted(torch.nn.Module):
    """A student whose classes are in another order."""

    def __init__(self, student):
        super().__init__()
        self.student = student

    def forward(self, x):
        return self.student(x).roll(1, dims=1)


def test_what_litert_is_given_is_the_same_function_without_stored_integers(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from litert_run import for_litert

    model, inputs = NETS["linear after flatten"]()
    student = compress(model, Recipe.preset("w8a8").updated(["signal.images=2", "target=arm"]), inputs).student
    given = for_litert(student)
    stored = [n for n in given.graph.nodes if n.op == "get_attr" and not g.tensor_of(given, n).is_floating_point()]
    assert {g.tensor_of(given, n).dtype for n in stored} <= {torch.int64}, "zero points alone"
    with torch.no_grad():
        assert torch.allclose(given(*inputs), student(*inputs), rtol=0, atol=1e-6)
