"""Pools: order, streams that stay streams, and errors that reach the caller."""

import multiprocessing

import pytest

from datafree.execution.pools import processes, serial


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
