"""`compress`: the whole method on one screen."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from datafree import graph as g
from datafree.allocation import allocate, choose_channels, without_channels
from datafree.allocation import spend as share_out
from datafree.execution import (
    OnStep,
    Work,
    counted,
    counting,
    ignore_steps,
    open_checkpoints,
    peak_memory,
    serial,
    spend,
)
from datafree.graph import described, trace
from datafree.models import check_weights, input_range
from datafree.recipe import Made, Recipe
from datafree.records import InputRange, LayerResult, Summary
from datafree.run import Run, costs, images_of, with_estimate
from datafree.signals import make_signal
from datafree.solve import Pool, plan_layers, solve_layers
from datafree.student import check_distillation, distill, settled
from datafree.teacher import equalize_, fold_batchnorm_


def ignore(result: LayerResult) -> None:
    """The `on_done` of someone who does not watch."""


def compress(
    model: nn.Module,
    recipe: Recipe,
    example: Tensor | tuple[Tensor, ...],
    *,
    seed: int = 0,
    pool: Pool = serial,
    device: str = "cpu",
    on_done: Callable[[LayerResult], None] = ignore,
    on_range: InputRange | None = None,
    images: Run | tuple[Tensor, ...] | None = None,
    predict: bool = False,
    resume: str | Path | None = None,
    on_step: OnStep = ignore_steps,
) -> Run:
    """Compress a trained convolutional network with no data.

    Read what BatchNorm remembers, fold it, equalize ranges between layers, make inputs for every layer, solve each
    layer by itself so that it matches the original, and put the integer network together.

    Args:
        model: trained network; never changed, a copy is evaluated.
        recipe: what to do, see `Recipe`.
        example: input(s) (N, C, H, W) float; only shape and dtype are used.
        seed: of everything random; the same seed gives the same bits on every pool.
        pool: where layers are solved: `serial` or `processes(n)`.
        device: where `matched` and `inverted` make their images and `adversarial` trains its generator, "cpu" or
            "cuda"; everything else runs on the CPU.
        on_done: called with each `LayerResult` as it comes.
        on_range: mean and std of the network's input; None = from the model's configuration, else from the first
            BatchNorm.
        images: inputs to use instead of making them, one tensor for each of the model's inputs: real ones for
            `signal.kind` "loader"; or another run of the same network, whose images are used again.
        resume: a folder where unfinished work is kept: images and layers as they are done, and states of what takes
            long. Found there, work on the same model, recipe, seed and inputs goes on to the same bits. Delete it
            afterwards.
        on_step: called while images are made and while the student is distilled: what, steps done, steps in all.
        predict: also estimate the agreement with the float network, see `estimate`; about 120 forward passes of 64
            images.

    Returns:
        The student, the teacher it is measured against, every layer's result and a summary.

    Raises:
        CaptureError, RecipeError, ModelError, LayerError, MatchingError, DistillError, CheckpointError, RunError: all
            ValueErrors with one clear line.
    """
    start, pool = time.perf_counter(), counting(pool)
    check_weights(model)
    with counted() as spent:
        teacher = trace(model, example)
        fingerprint = g.fingerprint(teacher)
        given = images_of(images, fingerprint) if isinstance(images, Run) else images
        known = on_range or input_range(model)
        job = {"model": fingerprint, "recipe": recipe.dump(), "seed": str(seed)}
        job |= _inputs_of_job(example, known, given) if resume else {}
        work = Work(device, on_step, open_checkpoints(resume, job))
        stats, kept = fold_batchnorm_(teacher)
        stats, equalization = equalize_(teacher, stats, mode=recipe.equalize, rows=recipe.weights.per == "tensor")
        plan = plan_layers(teacher, recipe)  # refuses a wrong recipe before anything takes long
        check_distillation(teacher, recipe)
        source, chosen = make_signal(
            teacher,
            stats,
            recipe.signal,
            seed=seed,
            input_range=known,
            images=given,
            work=work,
        )
        recipe, pareto = share_out(teacher, plan, source, recipe, pool)
        plan = allocate(teacher, plan_layers(teacher, recipe), source, recipe, pool)
        plan, channels = choose_channels(teacher, plan, source, recipe)
        results, grids = solve_layers(teacher, plan, source, recipe, pool, on_done, work.checkpoints)
        smaller, results = without_channels(teacher, results, channels)
        results, distilled = distill(teacher, smaller, plan, results, grids, source, chosen, recipe, work)
        student, results = settled(smaller, plan, results, grids)
    spend(spent.macs)  # for whoever counts around this
    summary = Summary(
        model=type(model).__name__,
        seed=seed,
        signal=f"{recipe.signal.kind}, {source.num_images} images{source.note}",
        input_range=str(chosen),
        seconds=time.perf_counter() - start,
        peak_memory_bytes=peak_memory(),
        equalization=str(equalization),
        activations=_activations(recipe, plan.sites),
        skipped=plan.skipped + kept,
        warnings=warnings_of(model, stats, chosen),
        fingerprint=fingerprint,
        removed=tuple(described(channels)),
        pareto=pareto,
        distilled=distilled,
        **costs(plan, teacher, smaller, results, spent=spent.macs),
    )
    made = source.inputs if isinstance(recipe.signal, Made) else ()
    made_in = chosen if chosen.mean else None
    run = Run(student, teacher, recipe, tuple(results.values()), summary, stats, made, made_in, source.generator)
    return with_estimate(run) if predict else run


def _inputs_of_job(
    example: Tensor | tuple[Tensor, ...], known: InputRange | None, images: tuple[Tensor, ...] | None
) -> dict[str, str]:
    """What tells a job's inputs from another's: shapes, range, and the images given."""
    shapes = [tuple(x.shape[1:]) for x in (example if isinstance(example, tuple) else (example,))]
    marks = [zlib.crc32(x.detach().contiguous().numpy().tobytes()) for x in images or ()]
    return {"input": f"{shapes}, {known}", "images": str(marks)}


def _activations(recipe: Recipe, sites: dict[str, tuple[int, ...]]) -> str:
    if recipe.activations.bits is None:
        return "float"
    wide = max((max(w) for w in sites.values()), default=8)
    return f"{recipe.activations.bits} bits at layer inputs; {wide} at sums, concatenations, pooling, network input"


def warnings_of(model: nn.Module, stats: dict, chosen: InputRange) -> tuple[str, ...]:
    found = []
    if model.training:
        found.append("the model was in train mode; a copy in eval mode was compressed")
    if not stats:
        found.append(
            "there is no BatchNorm: layers were solved on procedural images alone, unlike the training data perhaps"
        )
    if "assumed" in chosen.source:
        found.append(f"the scale of the network's input is {chosen}; set it if your images look otherwise")
    return tuple(found)
