"""The paper's signal: every BatchNorm output is drawn, independent Gaussians of what it remembers (eq. 2-3)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from datafree import graph as g
from datafree.recipe import Gaussian, SignalRecipe
from datafree.records import ChannelStats, InputRange
from datafree.signals.job import SignalJob
from datafree.signals.propagated import propagated
from datafree.signals.source import Signal


def noise(shape: tuple[int, ...], recipe: SignalRecipe, rng: torch.Generator) -> Tensor:
    """N(0, 1)."""
    return torch.randn(shape, generator=rng)


def gaussian_signal(job: SignalJob) -> Signal:
    """Draws behind every BatchNorm, and for the network's inputs where none are given."""
    assert isinstance(job.recipe, Gaussian), "the table calls this for its own kind"
    drawn = job.ranges if job.given is None else ()
    inputs = zip(g.placeholders(job.teacher), drawn, strict=False)
    stats = {node.name: _drawn(known, g.shape(node)) for node, known in inputs}
    return replace(propagated(job), at_batchnorm="draw", pooling=job.recipe.pooling, input_stats=stats)


def _drawn(known: InputRange, shape: tuple[int, ...]) -> ChannelStats:
    """Statistics of an input's channels, for it is drawn as BatchNorm outputs are."""
    mean, std = (torch.tensor(values).expand(shape[1]) for values in (known.mean, known.std))
    return ChannelStats(mean, std)
