"""Work kept on the way: whole files only, of one job only; and what goes on from it ends with the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from datafree import Recipe, compress
from datafree.execution.resume import (
    NO_CHECKPOINTS,
    CheckpointError,
    Checkpoints,
    adam_state,
    layer_from_tensors,
    layer_to_tensors,
    open_checkpoints,
    restore_adam,
)
from datafree.records import InputRange
from nets import NETS

JOB = {"model": "a", "recipe": "b", "seed": "0"}


class Killed(Exception):
    """Stops a run in the middle."""


def test_what_is_written_is_read_back(tmp_path):
    kept = open_checkpoints(tmp_path / "work", JOB)
    tensors = {"x": torch.arange(3), "y": torch.randn(2, 2).t()}
    kept.part("images").write("state", tensors, {"step": 4})
    again = open_checkpoints(tmp_path / "work", JOB).part("images")
    found = again.read("state")
    assert found is not None and all(torch.equal(found[k], v) for k, v in tensors.items())
    assert again.record("state") == {"step": 4}
    assert again.read("other") is None
    assert not list((tmp_path / "work").glob("*.part"))


def test_without_a_folder_nothing_is_kept():
    NO_CHECKPOINTS.write("x", {"x": torch.zeros(1)})
    assert NO_CHECKPOINTS.read("x") is None
    assert open_checkpoints(None, JOB) == Checkpoints()


def test_a_folder_of_another_job_is_refused(tmp_path):
    open_checkpoints(tmp_path / "work", JOB).write("x", {"x": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"work on another recipe and seed; go on with the same model"):
        open_checkpoints(tmp_path / "work", {**JOB, "recipe": "c", "seed": "1"})


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(CheckpointError, match=r"is not a folder of unfinished work; choose an empty or a new one"):
        open_checkpoints(tmp_path, JOB)


def test_damaged_files_are_named(tmp_path):
    work = tmp_path / "work"
    kept = open_checkpoints(work, JOB)
    assert not work.exists()
    kept.write("state", {"x": torch.zeros(100)})
    [file] = work.glob("state*")
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(CheckpointError, match=r"state.safetensors is damaged: .*; delete that file"):
        kept.read("state")
    (work / "job.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"job.json is damaged: .*; delete the folder and start again"):
        open_checkpoints(work, JOB)


def test_adam_goes_on_as_if_it_had_not_stopped():
    def steps(x, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            (x**3).sum().backward()
            optimizer.step()

    whole = torch.arange(1.0, 4.0).requires_grad_(True)
    steps(whole, torch.optim.Adam([whole], lr=0.1), 6)
    part = torch.arange(1.0, 4.0).requires_grad_(True)
    first = torch.optim.Adam([part], lr=0.1)
    steps(part, first, 2)
    second = torch.optim.Adam([part], lr=0.1)
    restore_adam(second, adam_state(first))
    steps(part, second, 4)
    assert torch.equal(whole, part)


def test_layers_survive(tmp_path):
    model, inputs = next(iter(NETS.values()))()
    for preset in ("w4a8", "prune50"):
        settings = ["signal.kind=propagated", "signal.images=2", "solve.sequential=false"]
        for layer in compress(model, Recipe.preset(preset).updated(settings), inputs).layers:
            tensors, record = layer_to_tensors(layer)
            again = layer_from_tensors(tensors, json.loads(json.dumps(record)))
            assert torch.equal(again.weight, layer.weight) and torch.equal(again.bias, layer.bias)
            assert {k: v for k, v in vars(again).items() if k not in ("weight", "bias", "weight_qparams")} == {
                k: v for k, v in vars(layer).items() if k not in ("weight", "bias", "weight_qparams")
            }


RECIPES = {
    "independent": ["solve.sequential=false"],
    "in sequence": ["solve.sequential=true"],
    "distilled": ["solve.sequential=true", "distill.steps=52", "distill.batch=4"],
    "adversarial": ["signal.kind=adversarial", "signal.steps=60", "signal.warmup=2", "signal.batch=4"],
    "distilled adversarially": [
        "signal.kind=adversarial", "signal.steps=4", "signal.warmup=2", "signal.batch=4",
        "distill.images=adversarial", "distill.steps=60", "distill.batch=4",
    ],
}  # fmt: skip
CASES = [pytest.param(r, id=n, marks=[] if n == "in sequence" else pytest.mark.slow) for n, r in RECIPES.items()]


@pytest.mark.parametrize("settings", CASES)
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, settings):
    model, inputs = NETS["residual"]()
    moved = [] if "signal.kind=adversarial" in settings else ["signal.kind=inverted", "signal.steps=60"]
    recipe = Recipe.preset("w4a8").updated(["signal.images=8", *moved, *settings])
    num_steps = []
    whole = compress(model, recipe, inputs, on_step=lambda *_: num_steps.append(1))
    layers = [r.name for r in whole.layers]
    for stop in (len(num_steps) - 3, layers[len(layers) // 2]):
        seen = []

        def step(what, done, total, stop=stop, seen=seen):
            seen.append(what)
            if len(seen) == stop:
                raise Killed

        def layer(result, stop=stop):
            if result.name == stop:
                raise Killed

        work = tmp_path / str(stop)
        with pytest.raises(Killed):
            compress(model, recipe, inputs, on_step=step, on_done=layer, resume=work)
        assert any(work.glob("*.safetensors"))
        after = []
        again = compress(model, recipe, inputs, resume=work, on_step=lambda *seen, after=after: after.append(seen))
        assert len(after) < len(num_steps)
        for name, value in whole.student.state_dict().items():
            assert torch.equal(value, again.student.state_dict()[name]), name


@pytest.mark.skipif(not hasattr(os, "fork"), reason="copies of a process are forks")
@pytest.mark.slow
def test_sigkill_at_random_moments_changes_no_bit():
    script = Path(__file__).parents[1] / "killed.py"
    done = subprocess.run([sys.executable, script, "50", "0"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_resuming_with_another_seed_is_refused(tmp_path):
    model, inputs = NETS["residual"]()
    recipe = Recipe.preset("w8a8").updated(["signal.images=2"])
    compress(model, recipe, inputs, resume=tmp_path / "work")
    with pytest.raises(CheckpointError, match=r"holds work on another seed; go on with the same"):
        compress(model, recipe, inputs, seed=1, resume=tmp_path / "work")
    with pytest.raises(CheckpointError, match=r"holds work on another input and images; go on with the same"):
        compress(
            model, recipe, inputs, on_range=InputRange((0.5,), (2.0,), "test"), images=inputs, resume=tmp_path / "work"
        )
