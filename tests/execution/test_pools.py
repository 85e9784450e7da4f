"""Pools: order, streams that stay streams, and errors that reach the caller."""

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from datafree import Recipe, compress
from datafree.execution.pools import processes, serial
from datafree.execution.workers import WorkerError
from nets import NETS


def reciprocal(x):
    return 1 / x


def stream(items, taken):
    for item in items:
        taken.append(item)
        yield item


def test_serial_keeps_order_and_takes_one_item_at_a_time():
    taken = []
    results = serial(reciprocal, stream([4, 1, 2], taken))
    assert taken == []
    assert next(results) == 0.25 and taken == [4]
    assert next(results) == 1 and taken == [4, 1]
    assert list(results) == [0.5] and taken == [4, 1, 2]


def test_serial_passes_errors_on():
    results = serial(reciprocal, [2, 0, 1])
    assert next(results) == 0.5
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.fixture(scope="module")
def trail():
    """One process, items the third of which fails: results, items taken before each, all taken, the error."""
    taken, results, taken_before = [], [], []
    with pytest.raises(ZeroDivisionError) as caught:
        for result in processes(1)(reciprocal, stream([4, 1, 0, 2, 8, 16, 32], taken)):
            results.append(result)
            taken_before.append(len(taken))
    return results, taken_before, taken, caught.value


@pytest.mark.slow
def test_processes_keep_order(trail):
    assert trail[0] == [0.25, 1]


@pytest.mark.slow
def test_processes_have_twice_as_many_items_under_way_as_workers(trail):
    _, taken_before, taken, _ = trail
    assert taken_before == [2, 3]  # two taken, one came back; one more taken, one came back
    assert taken == [4, 1, 0, 2]


def test_error_of_a_process_reaches_the_caller(trail):
    assert str(trail[3]) == "division by zero"


def test_no_process_is_left(trail):
    assert not multiprocessing.active_children()


def test_processes_start_only_when_asked_for_a_result():
    taken = []
    results = processes(2)(reciprocal, stream([1], taken))
    assert taken == [] and not multiprocessing.active_children()
    results.close()


def test_no_items_are_no_results():
    assert list(processes(2)(reciprocal, [])) == list(serial(reciprocal, [])) == []


@pytest.mark.parametrize("num_workers", [0, -3])
def test_pool_without_workers_is_refused(num_workers):
    with pytest.raises(ValueError, match=rf"^{num_workers} workers cannot do anything; give 1 or more$"):
        processes(num_workers)


@dataclass(frozen=True)
class Item:
    """Kills the process that is at it as often as there are files with names of this start, and one less each time."""

    name: str
    value: int
    marker: Path


def killed(item):
    for file in sorted(item.marker.parent.glob(f"{item.marker.name}*")):
        file.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.randn(item.value, generator=torch.Generator().manual_seed(item.value))


def starving(item):
    for file in sorted(item.marker.parent.glob(f"{item.marker.name}*")):
        file.unlink()
        torch.empty(2**50)
    return killed(item)


def items_with_marks(folder, **times):
    """Five of them; `times` says how often which kills."""
    for name, count in times.items():
        for number in range(count):
            (folder / f"{name}{number}").touch()
    return [Item(name, value, folder / name) for value, name in enumerate(["a", "b", "c", "d", "e"], 1)]


@pytest.mark.slow
def test_what_a_killed_process_was_at_is_done_again_by_fewer(tmp_path):
    items, lost = items_with_marks(tmp_path, c=1), []
    found = list(processes(2, on_lost=lost.append)(killed, iter(items)))
    assert all(map(torch.equal, found, map(killed, items))) and len(found) == 5
    [loss] = lost
    assert loss.workers == 1 and "c" in loss.under_way
    assert str(loss).startswith(
        "a process was killed, for want of memory most likely; done again by one process, one by one: "
    )


@pytest.mark.slow
def test_without_memory_a_process_tells_and_it_is_done_again(tmp_path):
    items, lost = items_with_marks(tmp_path, b=1), []
    found = list(processes(4, on_lost=lost.append)(starving, iter(items)))
    assert all(map(torch.equal, found, map(killed, items))) and len(found) == 5
    assert [loss.workers for loss in lost] == [2]
    assert (
        lost[0].why
        == "a process had no memory left (memory ran out: 4,503,599,627,370,496 bytes were asked for at once)"
    )


def test_one_item_that_kills_every_process_is_named(tmp_path):
    items = items_with_marks(tmp_path, b=9)
    with pytest.warns(RuntimeWarning, match="done again by one process, one by one: b"):
        results = processes(1)(killed, iter(items))
        assert torch.equal(next(results), killed(items[0]))
        with pytest.raises(
            WorkerError, match=r"^b: a process was killed, .* likely, though nothing else was done; free "
        ):
            next(results)
    assert not multiprocessing.active_children()


def killed_once(solve, marker, job):
    if marker.exists() and job.name == marker.read_text():
        marker.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return solve(job)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_compression_that_loses_a_process_ends_with_the_same_bits(workers, tmp_path):
    model, inputs = NETS["residual"]()
    settings = ["signal.kind=propagated", "signal.images=8", "solve.sequential=false"]
    recipe, marker, lost = Recipe.preset("w4a8").updated(settings), tmp_path / "kill", []
    whole = compress(model, recipe, inputs)
    names = [layer.name for layer in whole.layers]
    marker.write_text(names[len(names) // 2])
    pool = processes(workers, on_lost=lost.append)
    run = compress(model, recipe, inputs, pool=lambda f, jobs: pool(partial(killed_once, f, marker), jobs))
    kept = run.student.state_dict()
    assert all(torch.equal(value, kept[key]) for key, value in whole.student.state_dict().items())
    assert len(lost) == 1 and names[len(names) // 2] in lost[0].under_way


def failing_stream(items):
    yield from items
    raise MemoryError("in this process")


@pytest.mark.slow
def test_memory_that_runs_out_where_items_are_made_loses_none_silently(tmp_path):
    items = items_with_marks(tmp_path)
    with pytest.raises(MemoryError, match="in this process"):
        list(processes(1)(killed, failing_stream(items)))


def done_later(asked):
    seconds, place = asked
    time.sleep(seconds)
    place.touch()


def test_what_nobody_waits_for_any_more_is_not_done(tmp_path):
    places = [tmp_path / str(number) for number in range(4)]
    results = processes(2)(done_later, [(20 * (number > 0), p) for number, p in enumerate(places)])
    next(results)
    results.close()
    assert [place.exists() for place in places] == [True, False, False, False]
