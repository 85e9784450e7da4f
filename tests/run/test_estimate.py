"""Agreement predicted without data: against students damaged on purpose, and against a known curve."""

from dataclasses import replace

import pytest
import torch

from datafree import Recipe, compress, estimate, load_model
from datafree import graph as g
from datafree.demo import digits
from datafree.records import Estimate
from datafree.run.estimate import (  # fmt: skip
    BITS,
    MASKS,
    NOISES,
    EstimateError,
    calibrate,
    damaged,
    fit,
    flip_rate,
    predict,
    with_estimate,
)
from nets import NETS


@pytest.fixture(scope="module")
def demo_run():
    model, example = load_model("demo")
    return compress(model, Recipe.preset("w8a8").updated(["signal.images=64"]), example)


@pytest.mark.parametrize(("steepness", "power", "classes"), [(0.3, 1.0, 10), (1.7, 1.5, 1000), (5.0, 0.8, 2)])
def test_a_known_curve_is_found(steepness, power, classes):
    moves = torch.tensor([0.01, 0.03, 0.1, 0.3, 0.8])
    turned = (1 - 1 / classes) * (1 - torch.exp(-((steepness * moves) ** power)))
    assert torch.allclose(flip_rate(steepness * moves, power, classes), turned, atol=1e-6)
    assert fit(moves, turned, classes) == (pytest.approx(steepness, rel=0.01), power)


@pytest.mark.slow
def test_damage_grows_and_leaves_the_teacher_alone(demo_run):
    teacher = demo_run.teacher
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    weight = g.weight(teacher, next(iter(g.layers(teacher).values())))
    moved = [float((g.weight(net, next(iter(g.layers(net).values()))) - weight).norm()) for net in damaged(teacher)]
    assert len(moved) == len(NOISES) + len(BITS) + len(MASKS)
    noise, rounding, masks = moved[: len(NOISES)], moved[len(NOISES) : -len(MASKS)], moved[-len(MASKS) :]
    for part in (noise, rounding, masks):
        assert part == sorted(part) and part[-1] > part[0]
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())


@pytest.mark.slow
def test_worse_students_are_predicted_to_agree_less(demo_run):
    """The order, and roughly the size: real digits are only looked at to compare."""
    x, _ = digits("test")
    students = [demo_run.student, *damaged(demo_run.teacher)][:: len(BITS)]
    curve = calibrate(demo_run)
    predicted = [predict(s, curve) for s in students]
    with torch.no_grad():
        answers = demo_run.teacher(x).argmax(1)
        true = [100 * float((s(x).argmax(1) == answers).float().mean()) for s in students]
    order = sorted(range(len(true)), key=lambda i: true[i])
    assert sorted(range(len(true)), key=lambda i: predicted[i].agreement)[0] == order[0]
    assert predicted[0].agreement > 90 and true[0] > 95
    for found in predicted:
        assert 0 <= found.low < found.agreement < found.high <= 100 or found.agreement == 100


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
