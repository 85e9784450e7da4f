"""Agreement predicted without data: against damaged students, and against angles whose answer is known."""

import math
from dataclasses import replace

import pytest
import torch

from datafree import Recipe, compress, estimate, load_model
from datafree import graph as g
from datafree.demo import digits
from datafree.records import Estimate
from datafree.run.estimate import (  # fmt: skip
    EFFORTS,
    SURER,
    EstimateError,
    calibrate,
    centred,
    gaussian_height,
    gaussian_logits,
    noise_of,
    num_steps,
    predict,
    same_answers,
    sureness,
    with_estimate,
)
from nets import NETS


@pytest.fixture(scope="module")
def demo_run():
    model, example = load_model("demo")
    return compress(model, Recipe.preset("w8a8").updated(["signal.images=64"]), example)


def shaken(teacher, noise):
    """The teacher with noise on its weights, as a share of their deviation."""
    generator = torch.Generator().manual_seed(1)
    weights = {n: g.weight(teacher, layer) for n, layer in g.layers(teacher).items()}
    moved = {n: w + noise * w.std() * torch.randn(w.shape, generator=generator) for n, w in weights.items()}
    return g.with_weights(teacher, {n: w.flatten(1) for n, w in moved.items()})


@pytest.mark.parametrize("noise", [0.1, 0.5, 2.0])
def test_two_gaussian_answers_differ_by_their_angle(noise):
    """Of two classes the answer is the sign of one Gaussian: it turns in angle / pi of all draws (Sheppard 1899)."""
    assert same_answers(noise, 2) == pytest.approx(1 - math.atan(noise) / math.pi, abs=0.02)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_more_noise_turns_more_answers_down_to_chance(classes):
    found = [same_answers(noise, classes) for noise in (0.0, 0.05, 0.2, 1.0, 5.0, math.inf)]
    assert found[0] == 1 and found[-1] == 1 / classes
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("share", [0.0, 0.3, 3.0])
def test_a_multiple_of_the_teacher_is_no_noise(share):
    x, y = (centred(torch.randn(64, 10, generator=torch.Generator().manual_seed(i))) for i in (0, 1))
    y -= x * (x * y).sum() / x.square().sum()
    y *= x.norm() / y.norm()
    assert noise_of(x, 0.5 * (x + share * y)) == pytest.approx(share, abs=1e-5)
    assert noise_of(x, -x) == noise_of(x, 0 * x) > 50


def test_answers_that_stand_out_are_surer():
    x, _ = gaussian_logits(100)
    assert float(x.amax(1).mean()) == pytest.approx(gaussian_height(100))
    assert sureness(x, x) == pytest.approx(SURER)
    peaked = centred(x + 5 * torch.nn.functional.one_hot(x.argmax(1), 100))
    assert sureness(peaked, peaked) > 2 * SURER
    assert sureness(3 * peaked, 3 * peaked) == pytest.approx(sureness(peaked, peaked), rel=1e-4)


@pytest.mark.slow
def test_worse_students_are_predicted_to_agree_less(demo_run):
    """The order, and roughly the size: real digits are only looked at to compare."""
    x, _ = digits("test")
    students = [demo_run.student, *(shaken(demo_run.teacher, noise) for noise in (0.02, 0.05, 0.1, 0.2))]
    yardstick = calibrate(demo_run)
    predicted = [predict(s, yardstick) for s in students]
    with torch.no_grad():
        answers = demo_run.teacher(x).argmax(1)
        true = [100 * float((s(x).argmax(1) == answers).float().mean()) for s in students]
    assert min(true) == true[-1] and min(predicted, key=lambda p: p.agreement) == predicted[-1]
    assert predicted[0].agreement > 90 and true[0] > 95
    for found in predicted:
        assert 0 <= found.low <= found.agreement <= found.high <= 100


@pytest.mark.slow
def test_small_images_take_more_steps(demo_run):
    model, inputs = NETS["chain"]()
    run = compress(model, Recipe.preset("w8a8").updated(["signal.images=2"]), inputs)
    assert num_steps(run, EFFORTS["full"]) > 5


def test_an_undamaged_student_agrees():
    model, inputs = NETS["chain"]()
    run = compress(model, Recipe.preset("w8a8").updated(["signal.images=2"]), inputs)
    found = estimate(replace(run, student=run.teacher))
    assert found.agreement == 100 == found.high and found.low < 100
    assert str(Estimate(91.25, 80.0, 95.5)) == "91.2 % (80.0 to 95.5)"


@pytest.mark.slow
def test_the_same_run_gives_the_same_estimate_in_memory_and_from_disk(demo_run, tmp_path):
    run = with_estimate(demo_run)
    assert run.summary.estimate == estimate(demo_run)
    run.save(tmp_path / "run")
    again = type(run).load(tmp_path / "run")
    assert again.summary == run.summary and estimate(again) == run.summary.estimate


def test_a_network_without_logits_has_a_reason_instead():
    model, inputs = NETS["two outputs"]()
    run = compress(model, Recipe.preset("w8a8").updated(["signal.images=2"]), inputs, predict=True)
    assert run.summary.estimate is None
    assert run.summary.warnings[-1].startswith("an estimate needs logits (N, classes); this network returns [(")
    with pytest.raises(EstimateError, match="nothing to compare"):
        estimate(run)


def test_an_unknown_effort_is_refused():
    model, inputs = NETS["chain"]()
    run = compress(model, Recipe.preset("w8a8").updated(["signal.images=2"]), inputs)
    with pytest.raises(EstimateError, match="'quick' is no effort of an estimate; allowed are brief, full"):
        estimate(run, effort="quick")


def test_brief_is_a_fifth_of_full():
    assert 4 * EFFORTS["brief"].passes < EFFORTS["full"].passes
