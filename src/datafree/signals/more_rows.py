"""Procedural images among those that were made, for recipes that need more rows and no truer ones (ours)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, fx

from datafree import graph as g
from datafree.recipe import SignalRecipe
from datafree.signals.propagated import probe_images
from datafree.signals.scale import in_range
from datafree.signals.source import Signal
from datafree.signals.table import signal_kind

ENOUGH = 128  # images; more rows than these give lose a little
APART = 1  # added to the seed, so that probes are none of the images that moving began with


def takes_probes(teacher: fx.GraphModule, recipe: SignalRecipe, count: int, *, remembers: bool) -> bool:
    """Whether there are few images of one input, of a kind that takes long to make, and BatchNorm remembers.

    Args:
        count: of those images.
    """
    inputs = g.placeholders(teacher)
    are_few = count < ENOUGH and signal_kind(recipe).keeps_images
    return remembers and are_few and len(inputs) == 1 and len(g.shape(inputs[0])) == 4


def with_probes(teacher: fx.GraphModule, signal: Signal, recipe: SignalRecipe) -> Signal:
    """The same with a procedural image behind each that was made or given; as it was where it takes none."""
    remembers = bool(signal.stats) and signal.at_batchnorm == "restandardise"
    if not takes_probes(teacher, recipe, signal.num_images, remembers=remembers):
        return signal
    (images,) = signal.inputs
    unit = probe_images(tuple(images.shape), recipe, torch.Generator().manual_seed(signal.seed + APART))
    probes = in_range(unit, signal.input_range)
    return replace(signal, inputs=(torch.stack([images, probes], 1).flatten(0, 1),), has_probes=True)


def without_probes(signal: Signal) -> tuple[Tensor, ...]:
    """The inputs that were made or given."""
    return tuple(x[::2] for x in signal.inputs) if signal.has_probes else signal.inputs
