"""`compress`: the whole method on one screen."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, fx, nn

from datafree import graph as g
from datafree.allocation import Allocation, allocate
from datafree.arguments import read_arguments
from datafree.execution import (
    Execution,
    OnPlan,
    OnStep,
    count_macs,
    counting_pool,
    ignore_plan,
    ignore_steps,
    open_checkpoints,
    serial,
)
from datafree.models import input_range
from datafree.progress import OnDone, ignore, watched
from datafree.recipe import Recipe
from datafree.records import InputRange, LayerResult, Summary
from datafree.run import Run, Steps, expected_work, images_of, room_within, summarize, with_estimate
from datafree.sharing import ALONE, Sharing
from datafree.signals import measured_stats, signal_kind, with_probes, without_probes
from datafree.solve import Pool, Problem, plan_layers, solve_layers
from datafree.student import check_distillation, check_runs, distill, fit_grids_, remove_channels, snap_scales
from datafree.teacher import equalize_, fold_batchnorm_, slim


def accept(teacher: fx.GraphModule) -> None:
    """The `check` of someone who takes every network."""


def compress(
    model: nn.Module,
    recipe: Recipe | str | Path,
    example: Any,
    *,
    seed: int = 0,
    pool: Pool = serial,
    device: str = "cpu",
    memory: int | None = None,
    on_done: OnDone = ignore,
    on_range: InputRange | None = None,
    images: Any = None,
    predict: bool = False,
    resume: str | Path | None = None,
    on_step: OnStep = ignore_steps,
    on_plan: OnPlan = ignore_plan,
    check: Callable[[fx.GraphModule], None] = accept,
    progress: bool | None = None,
    shared: Sharing = ALONE,
) -> Run:
    """Compress a trained convolutional network with no data.

    Read what BatchNorm remembers, fold it, leave out what does nothing, equalize ranges between layers, make inputs
    for every layer, solve each by itself so that it matches the original, and put the integer network together.

    Args:
        model: trained network; never changed, a copy is evaluated, in float32. A student hands back the model's type.
        recipe: what to do: a preset such as "w4a8", a .yaml file, or a `Recipe`.
        example: an input (N, C, H, W) or its shape, a tuple of several, or a dictionary by the names of `forward`; only
            shape and dtype are used.
        seed: of everything random; the same seed gives the same bits on every pool.
        pool: where layers are solved: `serial`, `processes(n)` or `on_ray(address)`.
        device: where images are moved and a generator is trained, "cpu" or "cuda"; all else runs on the CPU.
        memory: bytes that this process may take, about; None = as many as it needs. With less, images are moved in
            smaller parts, and what is on its way through the network waits in files: longer, and other bits.
        on_done: called with each `LayerResult` as it comes.
        on_range: mean and std of the network's input; None = the model's configuration, else the first BatchNorm's.
        images: inputs to use instead of making them: real ones as the network sees them (a tensor, a DataLoader, a
            folder of .png or .jpg, .npy), or those that a run of the same network made (that run, or its `images`).
        predict: also estimate the agreement with the float network, see `estimate`.
        resume: a folder of unfinished work on the same model, recipe, seed and inputs, which goes on to the same bits.
        on_step: called while long work goes on: what is being done, steps done, steps in all.
        on_plan: called once with the multiply-adds that each of these will take.
        check: called with the network's graph before anything takes long; raises an error where it will not do.
        progress: whether to show a bar; None = in a terminal or a notebook, unless `on_done` or `on_step` watch.
        shared: of `datafree.sharing.sharing()`: graph and images that other recipes of this network have made already.

    Raises:
        ValueError: one clear line; it is one of the package's own, CaptureError, RecipeError, LayerError and others.
    """
    start, pool = time.perf_counter(), counting_pool(pool)
    asked = read_arguments(model, recipe, example, images)
    model, recipe = asked.model, asked.recipe
    with watched(on_step, on_plan, on_done, shown=progress) as (on_step, on_plan), count_macs() as spent:
        teacher = shared.trace(model, asked.example)
        fingerprint = g.fingerprint(teacher)
        given = images_of(asked.images, fingerprint) if isinstance(asked.images, Run) else asked.images
        known = on_range or input_range(model)
        marks = _marks(fingerprint, recipe, seed, asked.example, known, given) if resume else {}
        marks |= {"memory": str(memory or "")} if resume else {}
        work = Execution(device, on_step, open_checkpoints(resume, marks))
        stats, kept = fold_batchnorm_(teacher)
        teacher, stats, slimmed = slim(teacher, stats, mode=recipe.slim)
        plan = plan_layers(teacher, recipe)  # refuses a wrong recipe before anything takes long
        check_distillation(teacher, recipe.distill, recipe.signal)
        check(teacher)
        place = Path(resume).parent if resume else None
        work = replace(work, room=room_within(teacher, plan, recipe, memory, place, remembers=bool(stats)))
        on_plan(expected_work(teacher, plan, recipe, remembers=bool(stats), room=work.room))
        make = partial(shared.make_signal, signal=recipe.signal, seed=seed, input_range=known, images=given, work=work)
        early = None if stats else make(teacher, stats)  # no BatchNorm: images tell what equalizing goes by
        remembered = measured_stats(teacher, early) if early else stats
        stats, equalization = equalize_(teacher, remembered, mode=recipe.equalize, rows=recipe.weights.per == "tensor")
        plan, signal = plan_layers(teacher, recipe), early or make(teacher, stats)
        signal = with_probes(teacher, signal, recipe.signal) if recipe.prune and recipe.prune.probes else signal
        allocated = allocate(Problem(teacher, plan, signal, recipe.solve), recipe, pool, on_step)
        solution = remove_channels(solve_layers(allocated.problem, pool, on_done, work), allocated.channels)
        solution, distilled = distill(allocated.problem, solution, recipe.distill, recipe.signal, work)
        student, layers = snap_scales(solution)
        fit_grids_(student, recipe.runtime)
        check_runs(student, solution.teacher, signal.inputs)
    steps, seconds = Steps(kept, slimmed, equalization, allocated, distilled, solution), time.perf_counter() - start
    summary = summarize(steps, model, fingerprint=fingerprint, seconds=seconds, spent=spent.macs)
    run = _run(student, layers, allocated, summary).with_ends(asked.dtype)
    return with_estimate(run) if predict else run


def _run(student: fx.GraphModule, layers: dict[str, LayerResult], allocation: Allocation, summary: Summary) -> Run:
    """What is kept of it all."""
    recipe, teacher, signal = allocation.recipe, allocation.problem.teacher, allocation.problem.signal
    made = without_probes(signal) if signal_kind(recipe.signal).keeps_images else ()
    made_in = signal.input_range if signal.input_range.mean else None
    done = tuple(layers.values())
    return Run(student, teacher, recipe, done, summary, signal.stats, made, made_in, signal.generator)


def _marks(
    fingerprint: str, recipe: Recipe, seed: int, example: g.Example, known: InputRange | None,
    images: tuple[Tensor, ...] | None,
) -> dict[str, str]:  # fmt: skip
    """What tells this work from another: model, recipe, seed, shapes, range, and the images given."""
    shapes = [tuple(x.shape[1:]) for x in g.tensors_in(example).values()]
    marks = [zlib.crc32(x.detach().contiguous().numpy().tobytes()) for x in images or ()]
    asked = {"model": fingerprint, "recipe": recipe.dump(), "seed": str(seed)}
    return {**asked, "input": f"{shapes}, {known}", "images": str(marks)}
