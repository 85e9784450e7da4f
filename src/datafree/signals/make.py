"""The signal that a recipe asks for."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, fx

from datafree import graph as g
from datafree.execution import ON_CPU, Execution
from datafree.recipe import SignalRecipe
from datafree.records import InputRange, Stats
from datafree.signals.first_layer import range_without_batchnorm
from datafree.signals.job import SignalJob
from datafree.signals.scale import infer_input_range
from datafree.signals.source import GIVEN, Signal
from datafree.signals.table import signal_kind


def make_signal(
    teacher: fx.GraphModule,
    stats: Stats,
    signal: SignalRecipe,
    *,
    seed: int,
    input_range: InputRange | None = None,
    images: tuple[Tensor, ...] | None = None,
    work: Execution = ON_CPU,
) -> Signal:
    """Make the inputs every layer will be solved on.

    Args:
        teacher: folded, equalized.
        stats: BatchNorm statistics by node name.
        signal: the recipe's part.
        input_range: mean and standard deviation of the network's first input; None = inferred from the first BatchNorm.
        images: inputs made before or real ones, as the network sees them; kind "loader" needs them.
        work: where images are moved by `matched` and `inverted`, and the generator of `adversarial` is trained.

    Raises:
        ValueError: kind "loader" without images.
    """
    kind = signal_kind(signal)
    if kind.start is None and images is None:
        raise ValueError(f"signal.kind is {signal.kind!r} but no images were given; pass images= to compress()")
    given = images and tuple(x.detach() for x in images)
    return made(replace(signal_job(teacher, stats, signal, seed, input_range), given=given, work=work))


def made(job: SignalJob) -> Signal:
    """The signal of a job, with images as a run directory has them where they are kept."""
    kind = signal_kind(job.recipe)
    signal = replace(kind.make(job), room=job.work.room)
    return replace(signal, inputs=tuple(x.half().float() for x in signal.inputs)) if kind.keeps_images else signal


def input_range_of(teacher: fx.GraphModule, stats: Stats, signal: SignalRecipe, known: InputRange | None) -> InputRange:
    """The range that `make_signal` chooses with seed 0, found before the signal is made."""
    if known and signal_kind(signal).start is not None:
        return known  # no image is needed to find it
    return signal_job(teacher, stats, signal, 0, known).ranges[0]


def signal_job(
    teacher: fx.GraphModule, stats: Stats, signal: SignalRecipe, seed: int, known: InputRange | None
) -> SignalJob:
    """What the signal begins with: inputs of unit deviation and the ranges they are brought to."""
    rng, kind = torch.Generator().manual_seed(seed), signal_kind(signal)
    if kind.start is None:
        return SignalJob(teacher, stats, signal, seed, rng, (), (GIVEN,))
    shapes = [g.shape(node)[1:] for node in g.placeholders(teacher)]
    count = images_asked(teacher, signal)
    unit = tuple(kind.start((count, *shape), signal, rng) for shape in shapes)
    first = known or _infer_range(teacher, 0, unit[0], stats)
    others = (_infer_range(teacher, i, unit[i], stats) for i in range(1, len(unit)))
    return SignalJob(teacher, stats, signal, seed, rng, unit, (first, *others))


def images_asked(teacher: fx.GraphModule, signal: SignalRecipe) -> int:
    """How many images there will be, of a recipe that names their number or leaves it open."""
    shape = g.shape(g.placeholders(teacher)[0])[1:]
    return signal.images or num_images(shape, most=128 if signal_kind(signal).keeps_images else 512)


def _infer_range(teacher: fx.GraphModule, index: int, unit: Tensor, stats: Stats) -> InputRange:
    """From the first BatchNorm; where there is none at all, from what else there is in front."""
    guessed = None if stats else range_without_batchnorm(teacher, index, unit)
    return guessed or infer_input_range(teacher, index, unit, stats)


def num_images(shape: tuple[int, ...], *, most: int) -> int:
    """64 images, and more where the input (C, H, W) is small, for the last layers see few positions of each (ours)."""
    side = min(shape[1:]) if len(shape) == 3 else 1
    return max(64, min(most, 64 * 112 // side))
