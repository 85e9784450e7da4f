"""Jobs on their way: their moments are gathered here or there, to the same bits."""

import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

from datafree import Recipe
from datafree.execution import count_macs, one_thread, serial
from datafree.graph import trace
from datafree.signals import Signal
from datafree.solve.jobs import LayerError, LayerJob
from datafree.solve.pending import PendingJob
from datafree.solve.plan import plan_layers
from datafree.solve.problem import Problem
from datafree.solve.schedule import solve_layers
from datafree.solve.solve_layer import layer_jobs, pending_jobs, solve_packed
from jobs import assert_same_results
from nets import NETS, block, head


def problem(model, x, *settings):
    recipe = Recipe.preset("w8a8-tensor").updated(list(settings))
    graph = trace(model, (x,))
    return Problem(graph, plan_layers(graph, recipe), Signal("loader", (x,)), recipe.solve)


def wide():
    """One layer whose moments are dear, and layers whose are not."""
    torch.manual_seed(0)
    return nn.Sequential(block(3, 8, 1), block(8, 8), head(8)).eval(), torch.randn(4, 3, 12, 12)


def test_dear_moments_are_gathered_where_the_layer_is_solved():
    packed = {job.name: job.packed() for job in pending_jobs(problem(*wide()), {})}
    assert {name: type(job) for name, job in packed.items()} == {
        "0.conv": LayerJob, "1.conv": PendingJob, "2.2": LayerJob
    }  # fmt: skip


@pytest.mark.parametrize("settings", [(), ("solve.method=nearest",)], ids=["covariance", "diagonal"])
@pytest.mark.parametrize("name", ["chain", "concat", "grouped"])
def test_a_job_that_travelled_is_solved_to_the_same_bits(name, settings):
    model, (x, *_) = NETS[name]()
    asked = problem(model, x, *settings)
    with one_thread():  # sums over several may round in another way
        there = [solve_packed(pickle.loads(pickle.dumps(job.packed()))) for job in pending_jobs(asked, {})]
        here = [solve_packed(job) for job in layer_jobs(asked, {})]
    assert_same_results(there, here)


def test_a_part_of_a_tensor_travels_alone():
    whole = torch.randn(40, 3, 12, 12)
    model, _ = wide()
    jobs = [job.packed() for job in pending_jobs(problem(model, whole[:4]), {}) if job.name == "1.conv"]
    x = jobs[0].source.x
    parts = replace(jobs[0], source=replace(jobs[0].source, x=torch.cat([x] * 10)[: len(x)]))
    assert len(pickle.dumps(parts)) > 5 * len(pickle.dumps(parts.packed()))


def test_multiply_adds_of_moments_count_where_they_are_gathered():
    asked = problem(*wide())
    with count_macs() as all_of_it:
        solve_layers(asked, serial, lambda result: None)
    with count_macs() as gathered:
        list(layer_jobs(asked, {}))
    assert all_of_it.macs >= gathered.macs > 0
    with count_macs() as late:
        list(pending_jobs(asked, {}))
    assert late.macs < gathered.macs


def test_moments_that_are_not_finite_are_said_where_they_are_gathered():
    model, x = wide()
    (job,) = [job for job in pending_jobs(problem(model, x), {}) if job.name == "1.conv"]
    broken = replace(job, source=replace(job.source, x=job.source.x * torch.inf))
    with pytest.raises(LayerError, match=r"^1\.conv: the mean of the layer's inputs is not finite; look at"):
        solve_packed(broken.packed())
