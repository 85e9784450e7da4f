"""Procedural images, once through the teacher, re-standardised at every BatchNorm: what most signals begin with."""

from __future__ import annotations

import torch
from torch import Tensor

from datafree.recipe import SignalRecipe
from datafree.signals.job import SignalJob
from datafree.signals.probes import dead_leaves, pink_noise
from datafree.signals.source import Signal

PROBES = {"leaves": dead_leaves, "pink": pink_noise}
INPUT_REACH = 3.5  # deviations: real inputs reach further than those made here, above all where std is inferred


def probe_images(shape: tuple[int, ...], recipe: SignalRecipe, rng: torch.Generator) -> Tensor:
    """Procedural images of zero mean and unit deviation; N(0, 1) where the input is no image (N, C, H, W)."""
    if len(shape) != 4:
        return torch.randn(shape, generator=rng)
    n, channels, height, width = shape
    return PROBES[recipe.probes](n, height=height, width=width, channels=channels, generator=rng)


def propagated(job: SignalJob) -> Signal:
    """The job's inputs as they are; every BatchNorm output is brought to what it remembers (ours)."""
    reach = [(min(r.mean) - INPUT_REACH * max(r.std), max(r.mean) + INPUT_REACH * max(r.std)) for r in job.ranges]
    kind, inputs = job.recipe.kind, job.inputs
    return Signal(
        kind, inputs, job.stats, "restandardise", seed=job.seed, input_limits=tuple(reach), input_range=job.ranges[0]
    )
