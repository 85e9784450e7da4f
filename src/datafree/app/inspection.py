"""What `compress` would do with a model, found out without solving anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import fx, nn

from datafree import graph as g
from datafree.app.forecast import Forecast, forecast
from datafree.app.uncollected import uncollected
from datafree.arguments import read_arguments
from datafree.execution import MAKING_IMAGES, ExpectedWork, count_macs, peak_memory
from datafree.export import EXPORTERS
from datafree.graph import batch_norms, trace
from datafree.models import input_range
from datafree.progress import OVERHEAD
from datafree.recipe import Recipe
from datafree.records import Equalization, Skipped, Slimmed, Stats
from datafree.run import EFFORTS, expected_work, warnings_of
from datafree.signals import images_asked, input_range_of, moving_seconds
from datafree.solve import LayerPlan, plan_layers
from datafree.teacher import equalize_, fold_batchnorm_, is_left_out, slim


@dataclass(frozen=True)
class InspectedLayer:
    """One layer: its place in the network, what BatchNorm tells of it, the bits planned (None = float).

    producers: layers (or inputs of the network) whose outputs reach this layer, in execution order.
    knows_input: the mean and std of all tensors that its input is made from are known.
    knows_output: the mean and std of its own output are known: a BatchNorm was folded into it.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    producers: tuple[str, ...]
    knows_input: bool
    knows_output: bool
    weight_bits: int | None
    input_bits: int | None


@dataclass(frozen=True)
class Inspection:
    """What `compress` would do. Equalization is tried in every mode, whichever the recipe asks for."""

    model: str
    input_shapes: tuple[tuple[int, ...], ...]  # without the batch dimension
    input_range: str
    layers: tuple[InspectedLayer, ...]
    equalizations: tuple[Equalization, ...]  # free, foldable, depthwise
    num_batchnorms: int
    num_parameters: int
    slimmed: Slimmed  # what does nothing, with `slim: on`
    kept: tuple[Skipped, ...]  # BatchNorms that stay as an affine operator
    skipped: tuple[Skipped, ...]  # everything else that is left as it is
    warnings: tuple[str, ...]
    forecast: tuple[Forecast, ...]  # layers that will probably lose channels
    seconds: float  # that compress will take on this machine, about
    memory: int  # bytes of the whole process at most, about


def inspect(
    model: nn.Module,
    example: Any,
    *,
    recipe: Recipe | str | Path = Recipe(),  # noqa: B008  it is frozen
) -> Inspection:
    """Say what `compress` would do with `model`: read, fold and plan, but solve no layer.

    Layers that will probably lose channels are found by rounding to nearest on a few procedural images, in seconds.

    Args:
        model: trained network; never changed, a copy is looked at.
        example: an input (N, C, H, W) or its shape, a tuple of several, or a dictionary by the names of `forward`.
        recipe: what would be done: a preset, a .yaml file, or a `Recipe`.

    Raises:
        CaptureError, RecipeError, ModelError: as `compress`, before any work is done.
    """
    start = time.perf_counter()
    asked = read_arguments(model, recipe, example)
    model, recipe = asked.model, asked.recipe
    with uncollected():
        teacher, there = trace(model, asked.example), peak_memory()
    num_batchnorms = len(batch_norms(teacher))
    stats, kept = fold_batchnorm_(teacher)
    num_parameters = g.num_parameters(teacher)
    smaller, left, slimmed = slim(teacher, stats, mode="on")
    if is_left_out(slimmed, num_parameters, recipe.slim):
        teacher, stats = smaller, left
    plan = plan_layers(teacher, recipe)
    chosen = input_range_of(teacher, stats, recipe.signal, input_range(model))
    rows = recipe.weights.per == "tensor"
    equalized = g.duplicate(teacher)
    moved, _ = equalize_(equalized, stats, mode=recipe.equalize, rows=rows)
    work = expected_work(teacher, plan, recipe, remembers=bool(stats))
    reading = time.perf_counter() - start
    with count_macs() as spent:
        start = time.perf_counter()
        found = forecast(equalized, moved, recipe, input_range(model))
        seconds = time.perf_counter() - start
    moving = moving_seconds(equalized, moved, recipe.signal, images_asked(teacher, recipe.signal))
    return Inspection(
        model=type(model).__name__,
        input_shapes=tuple(g.shape(node)[1:] for node in g.placeholders(teacher)),
        input_range=str(chosen),
        layers=tuple(_inspect_layer(teacher, item, stats) for item in plan.layers.values()),
        equalizations=tuple(
            equalize_(g.duplicate(teacher), stats, mode=mode, rows=rows)[1]
            for mode in ("free", "foldable", "depthwise")
        ),
        num_batchnorms=num_batchnorms,
        num_parameters=num_parameters,
        slimmed=slimmed,
        kept=kept,
        skipped=plan.skipped,
        warnings=(*warnings_of(model, stats, chosen), *_refusals(teacher, recipe, model)),
        forecast=found,
        seconds=reading + _seconds(work, spent.macs, seconds, moving),
        memory=there + work.memory,
    )


def _seconds(work: ExpectedWork, spent: int, seconds: float, moving: float | None) -> float:
    """What is ahead, at the rate of what was spent just now on the same layers; of moving images, as it was timed."""
    layers = OVERHEAD * work.num_layers
    solving = sum(macs for phase, macs in work.phases.items() if moving is None or phase != MAKING_IMAGES)
    ahead = solving + EFFORTS["brief"].passes * work.forward
    return (moving or 0.0) + seconds * (ahead + layers) / max(spent + layers, 1)


def _refusals(teacher: fx.GraphModule, recipe: Recipe, model: nn.Module) -> Iterator[str]:
    """Why files of some kind could not be written."""
    for exporter in EXPORTERS.values():
        try:
            exporter.check(teacher, recipe, getattr(model, "source", ""))
        except ValueError as error:
            yield f"no {exporter.suffix} file can be written: {error}"


def _inspect_layer(teacher: fx.GraphModule, item: LayerPlan, stats: Stats) -> InspectedLayer:
    layer, node = item.layer, g.node_of(teacher, item.layer.node)
    return InspectedLayer(
        name=layer.name,
        kind=layer.kind,
        weight_shape=tuple(g.weight(teacher, layer).shape),
        producers=tuple(g.note(n).layer or n.name for n in _before(node, lambda n: False)),
        knows_input=all(n.name in stats for n in _before(node, lambda n: n.name in stats)),
        knows_output=node.name in stats,
        weight_bits=item.weights.bits if item.weights else None,
        input_bits=item.input_bits,
    )


def _before(layer: fx.Node, stop: Callable[[fx.Node], bool]) -> list[fx.Node]:
    """Where walks from the input of `layer` towards the network's inputs end, in execution order."""
    ends, seen = set(), set()
    todo: list[fx.Node] = [layer.all_input_nodes[0]]
    while todo:
        node = todo.pop()
        if node in seen or node.op == "get_attr" or g.note(node).size is not None:  # a constant; a symbolic integer
            continue
        seen.add(node)
        if stop(node) or node.op == "placeholder" or g.note(node).layer:
            ends.add(node)
        else:
            todo.extend(node.all_input_nodes)
    return [node for node in layer.graph.nodes if node in ends]
