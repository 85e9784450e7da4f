"""Images moved part by part: the batch's own statistics, a gradient for each part, and the memory of a part."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from datafree import Recipe, compress
from datafree.execution import NO_CHECKPOINTS, open_checkpoints
from datafree.graph.capture import trace
from datafree.recipe import Inverted
from datafree.run.summary import about_signal
from datafree.signals import Signal, images_at_once, moving
from datafree.signals.batch_means import BatchMeans
from datafree.signals.matching import match, mismatch, relative_distance, steps_of
from datafree.signals.source import batch_statistics
from datafree.teacher.batchnorm import fold_batchnorm_
from jobs import signal_job
from nets import NETS, small_network

PARTS = [slice(0, 3), slice(3, 6), slice(6, 7)]
LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["first", "last"])


def some_values():
    return 3 * torch.randn(7, 5, 6, 4, generator=torch.Generator().manual_seed(0)) + torch.arange(5.0).view(1, 5, 1, 1)


def folded():
    model, x = small_network()
    graph = trace(model, x[:1])
    return graph, fold_batchnorm_(graph)[0]


@LAYOUTS
def test_parts_seen_one_after_another_have_the_statistics_of_the_whole(layout):
    x, means = some_values(), BatchMeans(7)
    for part in PARTS:
        found = means.statistics(part, "bn", x[part].to(memory_format=layout))
    for one, wanted in zip(found, batch_statistics(x), strict=True):
        torch.testing.assert_close(one, wanted, rtol=1e-4, atol=1e-4)


@LAYOUTS
def test_the_gradient_of_a_part_is_its_share_of_the_gradient_of_the_whole(layout):
    x, means = some_values(), BatchMeans(7)
    whole = x.clone().requires_grad_(True)
    sum((s * torch.arange(1.0, 6)).sum() for s in batch_statistics(whole)).backward()
    for part in PARTS:
        means.statistics(part, "bn", x[part])
    for part in PARTS:
        own = x[part].clone(memory_format=layout).requires_grad_(True)
        sum((s * torch.arange(1.0, 6)).sum() for s in means.statistics(part, "bn", own)).backward()
        torch.testing.assert_close(own.grad, whole.grad[part], rtol=1e-3, atol=1e-5)


def test_a_batch_seen_as_a_whole_remembers_nothing():
    x, means = some_values(), BatchMeans(7)
    assert all(map(torch.equal, means.statistics(slice(0, 7), "bn", x), batch_statistics(x))) and means.state() == {}


def test_means_are_remembered_from_a_checkpoint():
    x, means, other = some_values(), BatchMeans(7), BatchMeans(7)
    for part in PARTS:
        means.statistics(part, "bn", x[part])
    other.restore(means.state(), PARTS)
    again = (m.statistics(PARTS[0], "bn", x[:3] + 1) for m in (means, other))
    assert all(map(torch.equal, *again))


def moved(graph, stats, steps=40):
    job = signal_job(graph, stats, Inverted(steps=steps))
    unit = 2 * torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1)) + 0.5
    return match(replace(job, unit=(unit,)), unit)


def test_images_moved_in_parts_come_as_near_as_those_moved_at_once(monkeypatch):
    graph, stats = folded()
    whole = moved(graph, stats)
    monkeypatch.setattr(moving, "AT_ONCE", 2 * moving.AT_ONCE // images_at_once(graph))
    assert images_at_once(graph) == 2
    parts = moved(graph, stats)
    assert not parts.images.equal(whole.images)
    for found in (whole, parts):
        assert found.distance[1] < 0.7 * found.distance[0]
        now = float(mismatch(graph, stats, found.images, relative_distance)[0])
        assert now == pytest.approx(found.distance[1], rel=1e-2)
    assert parts.distance[1] < 1.3 * whole.distance[1]


def test_one_image_at_a_time_is_the_least(monkeypatch):
    graph, stats = folded()
    monkeypatch.setattr(moving, "AT_ONCE", 1)
    assert images_at_once(graph) == 1 and len(moved(graph, stats, steps=2).images) == 6


def test_efforts_take_more_and_more_steps_and_a_large_network_fewer(monkeypatch):
    graph, _ = folded()

    def steps():
        return [steps_of(Inverted(effort=effort), graph) for effort in ("fast", "normal", "best")]

    small = steps()
    assert small == sorted(set(small)) and steps_of(Inverted(), graph) == small[1]
    monkeypatch.setattr(moving, "AT_ONCE", 1)
    large = steps()
    assert large == sorted(set(large)) and large[0] < small[0] and large[1] < small[1]
    assert steps_of(Inverted(effort="best", steps=7), graph) == 7


class Killed(Exception):
    """Stops a run in the middle."""


def test_a_run_killed_between_parts_resumes_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(moving, "AT_ONCE", 1)
    monkeypatch.setattr(moving, "EVERY", 3)
    model, inputs = NETS["chain"]()
    recipe = Recipe(signal={"kind": "inverted", "images": 3, "steps": 8})

    def stop(what, step, steps):
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        compress(model, recipe, inputs, on_step=stop, resume=tmp_path / "work")
    again = compress(model, recipe, inputs, resume=tmp_path / "work")
    assert again.images[0].equal(compress(model, recipe, inputs).images[0])


class OfSmallMemory:
    """An objective on a device that holds so many images."""

    def __init__(self, count, room):
        self.targets, self.means, self.room, self.seen = None, BatchMeans(count), room, []

    def __call__(self, view, part):
        self.seen.append(len(view))
        if len(view) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        loss = self.means.mean(part, "square", view.square().mean())
        return loss, loss, None


def moved_with_room(room, checkpoints=NO_CHECKPOINTS, steps=3):
    graph, stats = folded()
    job = signal_job(graph, stats, Inverted())
    job = replace(job, work=replace(job.work, checkpoints=checkpoints))
    unit = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    objectives = []

    def objective_of(batch):
        objectives.append(OfSmallMemory(len(batch), room))
        return objectives[-1]

    return moving.move_all(job, unit, moving.SHORT, steps, objective_of), objectives


def test_a_device_without_room_is_shown_fewer_images_at_a_time():
    found, objectives = moved_with_room(2)
    assert found.at_once == 2 and len(found.images) == 6
    assert [max(o.seen) for o in objectives] == [6, 3, 2]
    assert found.distance[1] < found.distance[0]
    enough, _ = moved_with_room(6)
    assert enough.at_once is None


def test_a_device_without_room_for_one_image_is_no_use():
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        moved_with_room(0)


def test_states_of_other_parts_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(moving, "EVERY", 1)
    kept = open_checkpoints(tmp_path / "work", {})
    moved_with_room(6, kept)
    fewer, _ = moved_with_room(2, kept)
    again, objectives = moved_with_room(2, kept)
    assert again.images.equal(fewer.images)
    assert [len(o.seen) for o in objectives][-1] == 3, "three parts, for the distance after"


def test_the_summary_says_that_memory_ran_out():
    model, _ = small_network()
    signal = Signal("inverted", (torch.zeros(6, 3, 16, 16),), folded()[1], at_once=2)
    assert [said for said in about_signal(model.eval(), signal) if "memory" in said] == [
        "the device's memory ran out while images were made: the network saw 2 of them at a time from then on, which "
        "takes longer"
    ]
    assert not [said for said in about_signal(model.eval(), replace(signal, at_once=None)) if "memory" in said]
