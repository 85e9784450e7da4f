"""`compress`: the whole method on one screen."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

from torch import Tensor, nn

from datafree import graph as g
from datafree.allocate import allocate
from datafree.assemble import assemble
from datafree.batchnorm import fold_batchnorm_
from datafree.budget import spend
from datafree.capture import trace
from datafree.channels import described
from datafree.equalize import equalize_
from datafree.estimate import with_estimate
from datafree.evaluate import costs
from datafree.models import check_weights, input_range
from datafree.plan import plan_layers
from datafree.pools import serial
from datafree.recipe import Moved, Recipe
from datafree.records import InputRange, LayerResult, Summary
from datafree.run import Run, images_of
from datafree.signals import make_signal
from datafree.solve import Pool, solve_layers
from datafree.structured import choose_channels, without_channels


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
        device: where `matched` and `inverted` make their images, "cpu" or "cuda"; everything else runs on the CPU.
        on_done: called with each `LayerResult` as it comes.
        on_range: mean and std of the network's input; None = from the model's configuration, else from the first
            BatchNorm.
        images: inputs to use instead of making them, one tensor for each of the model's inputs: real ones for
            `signal.kind` "loader"; or another run of the same network, whose images are used again.
        predict: also estimate the agreement with the float network, see `estimate`; about 120 forward passes of 64
            images.

    Returns:
        The student, the teacher it is measured against, every layer's result and a summary.

    Raises:
        CaptureError, RecipeError, ModelError, LayerError, MatchingError, RunError: all ValueErrors with one clear line.
    """
    start = time.perf_counter()
    check_weights(model)
    teacher = trace(model, example)
    fingerprint = g.fingerprint(teacher)
    stats, kept = fold_batchnorm_(teacher)
    stats, equalization = equalize_(teacher, stats, mode=recipe.equalize, rows=recipe.weights.per == "tensor")
    source, chosen = make_signal(
        teacher,
        stats,
        recipe.signal,
        seed=seed,
        input_range=on_range or input_range(model),
        images=images_of(images, fingerprint) if isinstance(images, Run) else images,
        device=device,
    )
    recipe, pareto = spend(teacher, plan_layers(teacher, recipe), source, recipe, pool)
    plan = allocate(teacher, plan_layers(teacher, recipe), source, recipe, pool)
    plan, channels = choose_channels(teacher, plan, source, recipe)
    results, grids = solve_layers(teacher, plan, source, recipe, pool, on_done)
    smaller, results = without_channels(teacher, results, channels)
    student = assemble(smaller, plan, results, grids)
    summary = Summary(
        model=type(model).__name__,
        seed=seed,
        signal=f"{recipe.signal.kind}, {source.num_images} images",
        input_range=str(chosen),
        seconds=time.perf_counter() - start,
        peak_memory_bytes=_peak_memory(),
        equalization=str(equalization),
        activations=_activations(recipe, plan.sites),
        skipped=plan.skipped + kept,
        warnings=warnings_of(model, stats, chosen),
        fingerprint=fingerprint,
        removed=tuple(described(channels)),
        pareto=pareto,
        **costs(plan, teacher, smaller, results),
    )
    made = source.inputs if isinstance(recipe.signal, Moved) else ()
    known = chosen if chosen.mean else None
    run = Run(student, teacher, recipe, tuple(results.values()), summary, stats, made, known)
    return with_estimate(run) if predict else run


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


def _peak_memory() -> int:
    """Largest resident size of this process so far, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
