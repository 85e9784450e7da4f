"""Published methods by name, put together from this package's parts, for benches to stand beside.

    student = BASELINES["DFQ"](model, example, bits_w=8, bits_a=8, per="tensor", first_last="same", seed=0)
    student = PRUNING["magnitude, one threshold"](model, example, sparsity=0.5)

All return a student of the same form as `compress` does: what differs is how integers, ranges and biases were chosen.
Deviations from the papers: weights of 8 bits are symmetric, as this form stores them, and tensors that are summed,
concatenated or pooled have 8 bits. GDFQ (arXiv 2003.03603) is not here: its conditional generator and fine-tuning are
more code than all of this; `signal: adversarial` with `distill` is the nearest thing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, fx, nn

from bench.published import dfq, zeroq
from datafree import Recipe, compress
from datafree import graph as g
from datafree.allocation.sparsity import share_zeros
from datafree.app.sentences import distilled_text
from datafree.execution.pools import serial
from datafree.graph.capture import trace
from datafree.models.load import input_range
from datafree.progress import ignore
from datafree.quantization.affine import choose_qparams
from datafree.records import LayerResult, Moments
from datafree.signals import make_signal
from datafree.solve.jobs import LayerJob
from datafree.solve.plan import LayerPlan, plan_layers, quantized_at
from datafree.solve.problem import Grids, Problem, Solution
from datafree.solve.schedule import solve_layers
from datafree.solve.solve_layer import compress_layer
from datafree.student.assemble import assemble
from datafree.student.distill import distill
from datafree.student.tie_free_scales import snap_scales
from datafree.teacher.batchnorm import fold_batchnorm_
from datafree.teacher.equalize import equalize_

PLAIN = (
    "signal.kind=propagated", "equalize=off", "solve.sequential=false", "solve.method=nearest", "solve.clip=false",
    "solve.bias_correction=false", "solve.mend=false",
)  # fmt: skip
LAYERWISE = (  # the paper's way (arXiv 2011.09058)
    "signal.kind=gaussian", "equalize=free", "solve.method=straight_through", "solve.sequential=false",
    "solve.mend=false",
)  # fmt: skip
SQUANT = ("signal.kind=propagated", "equalize=off", "solve.sequential=false", "solve.method=squant", "solve.mend=false")


def by_settings(
    settings: tuple[str, ...], model: nn.Module, example: Tensor, *, bits_w: int, bits_a: int, per: str = "channel",
    first_last: int | str = 8, seed: int = 0,
) -> nn.Module:  # fmt: skip
    """A baseline that is a recipe of this package: plain rounding, SQuant (arXiv 2202.07471)."""
    recipe = _recipe(bits_w, bits_a, per, first_last).updated(list(settings))
    return compress(model, recipe, example, seed=seed).student


def by_dfq(
    model: nn.Module, example: Tensor, *, bits_w: int, bits_a: int, per: str = "channel", first_last: int | str = 8,
    seed: int = 0, replace_relu6: bool = True,
) -> nn.Module:  # fmt: skip
    """Data-free quantization as published (arXiv 1906.04721), see `dfq`."""
    made = dfq.prepare(model, example, replace_relu6=replace_relu6, seed=seed)
    recipe = _recipe(bits_w, bits_a, per, first_last).updated([*PLAIN, "solve.bias_correction=true"])
    return rounded(made.teacher, recipe, made.ranges, made.means)


def by_zeroq(
    model: nn.Module, example: Tensor, *, bits_w: int, bits_a: int, per: str = "channel", first_last: int | str = 8,
    seed: int = 0, images: Tensor | None = None,
) -> nn.Module:  # fmt: skip
    """ZeroQ with one width for all layers (arXiv 2001.00281): rounded to nearest, ranges from distilled images.

    Args:
        images: from `zeroq.distill_images`, which takes minutes, for other widths of the same network; None = made.
    """
    images = zeroq.distill_images(model, example, seed=seed) if images is None else images
    teacher = trace(model, example)
    fold_batchnorm_(teacher)
    recipe = _recipe(bits_w, bits_a, per, first_last).updated(list(PLAIN))
    return rounded(teacher, recipe, zeroq.extremes(teacher, images), {})


def by_magnitude(scope: str, model: nn.Module, example: Tensor, *, sparsity: float, seed: int = 0) -> nn.Module:
    """The smallest weights become zero, the same share of every layer or below one threshold; nothing is rounded."""
    prune = {"sparsity": sparsity, "scope": scope, "score": "magnitude"}
    recipe = Recipe(weights={"bits": None}, activations={"bits": None}, prune=prune).updated(list(PLAIN))
    return compress(model, recipe, example, seed=seed).student


def by_distilling(
    model: nn.Module, example: Tensor, *, start: Recipe, training: Recipe, seed: int = 0,
    start_images: tuple[Tensor, ...] | None = None, images: tuple[Tensor, ...] = (),
) -> tuple[nn.Module, str]:  # fmt: skip
    """A student trained as a whole (DI, AKD) whose layers were solved on something else than it is trained on.

    Args:
        start: how layers are solved, and on what.
        training: its `distill`; its signal is where images for training come from.
        start_images: of the start's signal where they were made before; None = made.
        images: to train on, unless a generator makes them on the way.

    Returns:
        The student, and what `distill` says happened.

    Raises:
        DistillError: training makes the student worse.
    """
    teacher = trace(model, example)
    stats, _ = fold_batchnorm_(teacher)
    stats, _ = equalize_(teacher, stats, mode=start.equalize, rows=start.weights.per == "tensor")
    known = input_range(model)
    signal = make_signal(teacher, stats, start.signal, seed=seed, input_range=known, images=start_images)
    problem = Problem(teacher, plan_layers(teacher, start), signal, start.solve)
    problem = replace(problem, plan=share_zeros(problem, start.prune, serial) if start.prune else problem.plan)
    solution = solve_layers(problem, serial, ignore)
    seen = replace(problem, signal=replace(signal, kind=training.signal.kind, inputs=images))
    assert training.distill is not None, "there is something to train"
    solution, done = distill(seen, solution, training.distill, training.signal)
    return snap_scales(solution)[0], distilled_text(done)


BASELINES: dict[str, Callable[..., nn.Module]] = {
    "plain rounding": partial(by_settings, PLAIN),
    "DFQ": by_dfq,
    "DFQ, ReLU6 kept": partial(by_dfq, replace_relu6=False),
    "ZeroQ": by_zeroq,
    "SQuant": partial(by_settings, SQUANT),
}
PRUNING: dict[str, Callable[..., nn.Module]] = {
    "magnitude, each layer": partial(by_magnitude, "layer"),
    "magnitude, one threshold": partial(by_magnitude, "global"),
}
TRIVIAL = tuple(PRUNING)


def _recipe(bits_w: int, bits_a: int, per: str, first_last: int | str) -> Recipe:
    return Recipe(weights={"bits": bits_w, "per": per}, activations={"bits": bits_a}, first_last=first_last)


def rounded(
    teacher: fx.GraphModule, recipe: Recipe, ranges: dict[str, dfq.Range], means: dict[str, Tensor]
) -> fx.GraphModule:
    """The student with weights rounded to nearest, tensors on given ranges, and biases corrected with given means.

    Args:
        ranges: ends of every tensor by node name.
        means: of every tensor's channels (C,), by node name; left out = zero, which corrects nothing.
    """
    plan = plan_layers(teacher, recipe)
    grids: Grids = {}
    for name, widths in plan.activation_bits.items():
        low, high = (torch.tensor([end]) for end in ranges[name])
        grids |= {(name, bits): choose_qparams(low, high, bits=bits, symmetric=False) for bits in widths}
    results = {name: _rounded_layer(teacher, item, recipe, grids, means) for name, item in plan.layers.items()}
    return assemble(Solution(teacher, plan, results, grids))


def _rounded_layer(
    teacher: fx.GraphModule, item: LayerPlan, recipe: Recipe, grids: Grids, means: dict[str, Tensor]
) -> LayerResult:
    layer, weight = item.layer, g.weight(teacher, item.layer)
    source = g.node_of(teacher, layer.node).args[0]
    mean = dfq.taps(means.get(source.name, torch.zeros(layer.groups * weight.shape[1])), layer, weight)
    job = LayerJob(
        name=layer.name,
        weight=g.grouped(weight, layer.groups),
        bias=g.bias(teacher, layer),
        moments=Moments(mean, mean, torch.ones_like(mean), num_rows=2**31),  # a mean known exactly has no noise
        spec=item.weights,
        method=recipe.solve,
        seed=0,
        input_scale=float(grids[quantized_at(source).name, item.input_bits].scale),
    )
    return compress_layer(job)
