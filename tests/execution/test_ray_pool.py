"""Layers as tasks of a Ray cluster of two nodes: order, limits, killed workers, and the bits of every other pool."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from datafree import Recipe, Run, compress
from datafree.app.sweep_runs import Asked, Network, Sweep, compress_all
from datafree.execution import RayPoolError, WorkerError, on_ray, one_thread, processes, serial
from jobs import assert_same_results
from nets import NETS

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed; make test-ray installs it")
THREE = ["chain", "residual", "concat"]


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_it_says_what_installs_it():
    with pytest.raises(RayPoolError, match=r"^Ray is not installed; .*install.*\[ray\]"):
        on_ray()


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each; nothing of them is left at the end."""
    import ray
    from ray.cluster_utils import Cluster

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes do not know this file
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        nodes.add_node(num_cpus=1)
        session = Path(nodes.head_node.get_session_dir_path()).name
        before = signal.getsignal(signal.SIGTERM)
        yield nodes
        assert signal.getsignal(signal.SIGTERM) is before
        ray.shutdown()
        nodes.shutdown()
    wait_until(lambda: not processes_of(session))


def wait_until(is_so):
    """Give processes the time that a busy machine takes."""
    for _ in range(600):
        if is_so():
            return
        time.sleep(0.1)
    pytest.fail("it did not come about in a minute")


def processes_of(session):
    lines = (read_quietly(file) for file in Path("/proc").glob("[0-9]*/cmdline"))
    return [line for line in lines if session in line]


def read_quietly(file):
    try:
        return file.read_text()
    except OSError:  # it has ended
        return ""


@pytest.fixture
def pool(cluster):
    return on_ray(cluster.address)


def reciprocal(x):
    return 1 / x


@needs_ray
def test_order_is_kept_and_no_more_than_twice_the_workers_are_under_way(pool, tmp_path):
    taken = []

    def items():
        for number in range(8):
            taken.append(number)
            yield number

    results = pool(partial(done_when_asked, tmp_path), items())
    assert taken == []
    (tmp_path / "0").touch()
    assert next(results) == 0
    assert taken == [0, 1, 2, 3]
    for number in range(8):
        (tmp_path / str(number)).touch()
    assert list(results) == [1, 2, 3, 4, 5, 6, 7] and len(taken) == 8


def done_when_asked(place, number):
    wait_until((place / str(number)).exists)
    return number


def threads_and_node(place, number):
    """Both nodes have to be at work at a time for either to end."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    (place / node).touch()
    wait_until(lambda: len(list(place.iterdir())) == 2)
    return torch.get_num_threads(), node


@needs_ray
def test_two_nodes_work_at_a_time_on_one_thread_each(pool, tmp_path):
    found = list(pool(partial(threads_and_node, tmp_path), range(4)))
    assert {threads for threads, _ in found} == {1} and len({node for _, node in found}) == 2


@needs_ray
def test_an_error_reaches_the_caller_as_it_was_raised(pool):
    results = pool(reciprocal, [2, 0, 1, 4, 8])
    assert next(results) == 0.5
    with pytest.raises(ZeroDivisionError, match=r"^division by zero$"):
        next(results)
    assert list(pool(reciprocal, [])) == [] and list(pool(reciprocal, [4])) == [0.25]


def killed_once(marker, function, item):
    """The first worker that gets here dies as of the kernel's out-of-memory killer."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return function(item)
    os.kill(os.getpid(), signal.SIGKILL)


def killed(item):
    os.kill(os.getpid(), signal.SIGKILL)


def compressed(name, pool, **asked):
    model, inputs = NETS[name]()
    return compress(model, "w8a8-tensor", inputs, pool=pool, progress=False, **asked)


def assert_same_run(one, other):
    assert_same_results(sorted(one.layers, key=by_name), sorted(other.layers, key=by_name))
    a, b = one.student.state_dict(), other.student.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def by_name(result):
    return result.name


@needs_ray
def test_a_killed_worker_is_made_up_for_to_the_same_bits(pool, tmp_path):
    marker = tmp_path / "killed"
    run = compressed("chain", lambda function, items: pool(partial(killed_once, marker, function), items))
    assert marker.exists()
    assert_same_run(run, compressed("chain", serial))


@needs_ray
@pytest.mark.slow
def test_a_worker_that_dies_each_time_is_said(pool):
    with pytest.raises(WorkerError, match=r"^a worker was lost with its work, and 3 times again: .*fewer workers$"):
        list(pool(killed, [1]))


@needs_ray
@pytest.mark.parametrize("name", [THREE[0], *(pytest.param(n, marks=pytest.mark.slow) for n in THREE[1:])])
def test_every_pool_gives_the_same_bits_and_tells_how_far_it_is(pool, name):
    seen = []
    run = compressed(name, pool, on_done=lambda result: seen.append(result.name))
    assert seen == [result.name for result in run.layers]
    for other in (serial, processes(2), backwards):
        assert_same_run(run, compressed(name, other))


@needs_ray
def test_runs_of_a_sweep_are_tasks_to_the_same_bits(pool, tmp_path):
    """Two networks, two recipes; those that make images for others come first."""
    recipes = {
        name: Asked(name, Recipe(signal={"kind": "matched", "images": 4, "steps": 2}, weights={"bits": bits}))
        for name, bits in (("eight", 8), ("four", 4))
    }

    def swept(where, pool):
        sweeps = []
        for name in ("one", "two"):
            torch.manual_seed(len(sweeps))
            model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
            network = Network(name, model, torch.zeros(1, 3, 12, 12), (name,), None, 0)
            sweeps.append(Sweep(network, recipes, tmp_path / where / name))
        return compress_all(sweeps, pool)

    with one_thread():
        for here, there in zip(swept("here", serial), swept("there", pool), strict=True):
            assert list(here) == list(there) == ["eight", "four"]
            for name in here:
                assert_same_run(here[name], there[name])


def backwards(function, items):
    return map(function, [*items][::-1])


@needs_ray
@pytest.mark.slow
def test_on_the_command_line_a_cluster_is_started_and_goes(tmp_path):
    """The run is that of one process."""
    runs = {"alone": [], "ray": ["--pool", "ray", "--workers", "1"]}
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    errors = []
    for name, flags in runs.items():
        asked = ["compress", "demo", "--recipe", "w8a8-tensor", "--out", name, "--json", "--estimate", "none"]
        done = subprocess.run(
            [sys.executable, "-m", "datafree", *asked, *flags], cwd=tmp_path, env=environment, capture_output=True,
            text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        errors.append([layer["error_db"] for layer in json.loads(done.stdout)["layers"]])
    assert errors[0] == errors[1]
    alone, on_cluster = (Run.load(tmp_path / name).student.state_dict() for name in runs)
    assert all(torch.equal(alone[key], on_cluster[key]) for key in alone)


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "no.such.host.invalid:6379"])
def test_a_cluster_that_is_not_there_is_said_at_once(address):
    code = f"from datafree import on_ray\nlist(on_ray({address!r})(abs, [1]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert f"no Ray cluster at {address}: " in last and last.endswith("; `ray start --head` starts one")


@needs_ray
@pytest.mark.parametrize("num_workers", [0, -3])
def test_pool_without_workers_is_refused(num_workers):
    with pytest.raises(ValueError, match=rf"^{num_workers} workers cannot do anything; give 1 or more$"):
        on_ray(num_workers=num_workers)


@needs_ray
def test_workers_of_a_cluster_that_runs_are_its_own(monkeypatch):
    wrong = r"^2 workers are asked for, but a cluster that runs has its own; leave one out$"
    with pytest.raises(ValueError, match=wrong):
        on_ray("127.0.0.1:6379", num_workers=2)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    with pytest.raises(ValueError, match=wrong):
        on_ray(num_workers=2)
