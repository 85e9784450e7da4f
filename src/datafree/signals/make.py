"""The signal that a recipe asks for."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from datafree import graph as g
from datafree.execution import ON_CPU, Execution
from datafree.recipe import Adversarial, Gaussian, Loader, OptimizedImages, Propagated
from datafree.records import ChannelStats, InputRange, Stats
from datafree.signals.adversarial import train
from datafree.signals.matching import SHORT, Competitor, in_range, match, motion_of
from datafree.signals.probes import dead_leaves, pink_noise
from datafree.signals.scale import infer_input_range
from datafree.signals.source import Signal

AT_BATCHNORM = {
    "gaussian": "draw",
    "propagated": "restandardise",
    "matched": "restandardise",
    "inverted": "restandardise",
    "adversarial": "restandardise",
}
INPUT_REACH = 3.5  # deviations: real inputs reach further than those made here, above all where std is inferred
PROBES = {"leaves": dead_leaves, "pink": pink_noise}


def make_signal(
    teacher: fx.GraphModule,
    stats: Stats,
    signal: Gaussian | Propagated | OptimizedImages | Loader,
    *,
    seed: int,
    input_range: InputRange | None = None,
    images: tuple[Tensor, ...] | None = None,
    competitor: Competitor | None = None,
    work: Execution = ON_CPU,
) -> tuple[Signal, InputRange]:
    """Make the inputs every layer will be solved on.

    Args:
        teacher: folded, equalized.
        stats: BatchNorm statistics by node name.
        signal: the recipe's part.
        input_range: mean and standard deviation of the network's first input; None = inferred from the first BatchNorm.
        images: inputs made before or real ones, as the network sees them; kind "loader" needs them.
        competitor: a student whose answers the images shall not share.
        work: where images are moved by `matched` and `inverted`, and the generator of `adversarial` is trained.

    Returns:
        The signal, and the range the images of the first input were made in.

    Raises:
        ValueError: kind "loader" without images.
    """
    generator = torch.Generator().manual_seed(seed)
    images = images and tuple(x.detach() for x in images)
    if isinstance(signal, Loader):
        if images is None:
            raise ValueError("signal.kind is 'loader' but no images were given; pass images= to compress()")
        at_batchnorm = "restandardise" if signal.restandardise else "keep"
        return Signal(signal.kind, images, stats, at_batchnorm, seed=seed), InputRange((), (), "the images given")
    shapes = [g.shape(node)[1:] for node in g.placeholders(teacher)]
    optimized = isinstance(signal, OptimizedImages)
    count = signal.images or num_images(shapes[0], most=128 if optimized else 512)
    shapes = [(count, *shape) for shape in shapes]
    unit = tuple(_unit_images(shape, signal, generator) for shape in shapes)
    first = input_range or infer_input_range(teacher, 0, unit[0], stats)
    ranges = [first, *(infer_input_range(teacher, i, unit[i], stats) for i in range(1, len(unit)))]
    note, network = "", None
    if optimized and stats and images is None and len(unit) == 1 and unit[0].dim() == 4:
        image, note, network = _optimized_images(teacher, stats, signal, unit[0], first, generator, competitor, work)
        images = (image,)
    inputs = images or tuple(in_range(x, r) for x, r in zip(unit, ranges, strict=True))
    if optimized:
        inputs = tuple(x.half().float() for x in inputs)  # as a run directory keeps them
    limits = tuple((min(r.mean) - INPUT_REACH * max(r.std), max(r.mean) + INPUT_REACH * max(r.std)) for r in ranges)
    drawn = []
    if isinstance(signal, Gaussian) and images is None:
        drawn, note = ranges, f"; the network's input is drawn at {first}; pooling is {signal.pooling}"
    source = Signal(
        signal.kind,
        inputs,
        stats,
        AT_BATCHNORM[signal.kind],
        pooling=signal.pooling if isinstance(signal, Gaussian) else "executed",
        seed=seed,
        input_limits=limits,
        note=note,
        generator=network,
        input_stats={n.name: _drawn(r, g.shape(n)) for n, r in zip(g.placeholders(teacher), drawn, strict=False)},
    )
    return source, first


def _drawn(known: InputRange, shape: tuple[int, ...]) -> ChannelStats:
    """Statistics of an input's channels, for it is drawn as BatchNorm outputs are."""
    mean, std = (torch.tensor(values).expand(shape[1]) for values in (known.mean, known.std))
    return ChannelStats(mean, std)


def _optimized_images(
    teacher: fx.GraphModule,
    stats: Stats,
    signal: OptimizedImages,
    probes: Tensor,
    known: InputRange,
    rng: torch.Generator,
    competitor: Competitor | None,
    work: Execution,
) -> tuple[Tensor, str, nn.Module | None]:
    """Images as the network sees them, how well they came out, and the generator that made them."""
    if isinstance(signal, Adversarial):
        network = train(teacher, stats, signal, input_range=known, generator=rng, work=work)
        with torch.no_grad():
            return in_range(network(network.noise(len(probes), rng)), known), "", network
    start = probes if motion_of(signal) is SHORT else torch.randn(probes.shape, generator=rng)
    made = match(teacher, stats, start, signal, input_range=known, generator=rng, competitor=competitor, work=work)
    return in_range(made.images, known), f"; {made}", None


def num_images(shape: tuple[int, ...], *, most: int) -> int:
    """64 images, and more where the input (C, H, W) is small, for the last layers see few positions of each (ours)."""
    side = min(shape[1:]) if len(shape) == 3 else 1
    return max(64, min(most, 64 * 112 // side))


def _unit_images(
    shape: tuple[int, ...], signal: Gaussian | Propagated | OptimizedImages | Loader, generator: torch.Generator
) -> Tensor:
    """Zero mean, unit standard deviation: N(0, 1) for the paper's signal, procedural images for ours."""
    if signal.kind == "gaussian" or len(shape) != 4:
        return torch.randn(shape, generator=generator)
    n, channels, height, width = shape
    return PROBES[signal.probes](n, height=height, width=width, channels=channels, generator=generator)
