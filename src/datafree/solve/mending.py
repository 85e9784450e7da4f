"""A layer whose channels came out far worse than its bits give is solved again, in ways that cost a little more (ours).

One scale for a tensor of very unequal rows, or one weight that takes the whole range, leaves channels that are all
noise; a sum of squares over channels, which is what solvers minimise, does not see them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from datafree.solve.jobs import LayerJob

FLOOR_DB = 15.0  # at 8 bits, where layers come out at 40; in proportion at others
DEAD = 1e-8  # of the largest channel's power: such a channel is not there
ALIVE = 1e-4  # of the power of the median of those that are; a channel below says nothing
IDLE = 1e-6  # of a row's power: what a weight adds that may as well be zero


def floor_db(bits: int | None) -> float:
    """The least `channel_db` of a layer that is handed over as it was asked for; of a float layer none."""
    return -math.inf if bits is None else FLOOR_DB * bits / 8


def channel_db(noise: Float[Tensor, "g o"], power: Float[Tensor, "g o"]) -> float:
    """What is lost of each output channel, as a share of its own variance and all of it at most; mean, in decibel."""
    there = power[power > DEAD * power.max()]
    if not len(there):
        return math.inf
    alive = power > ALIVE * there.median()
    share = float((noise[alive] / power[alive]).clamp(max=1).mean())
    return math.inf if share <= 0 else 0.0 - 10 * math.log10(share)


def remedies(job: LayerJob) -> Iterator[tuple[str, LayerJob]]:
    """Other ways to solve a layer, from what costs nothing to float weights, each with what it is called."""
    light = replace(job, weight=_without_idle(job))
    yield "weights on inputs that hardly move left out", light
    if not (job.spec.per_channel or job.spec.one_scale):
        yield "a scale for each channel", replace(job, spec=replace(job.spec, per_channel=True))
        yield "both", replace(light, spec=replace(job.spec, per_channel=True))
    if job.spec.bits is not None and job.spec.bits < 8:
        finer = replace(job.spec, bits=8, per_channel=not job.spec.one_scale, symmetric=True)
        yield "8 bits" if job.spec.one_scale else "8 bits and a scale for each channel", replace(light, spec=finer)
    yield "float weights", replace(job, spec=replace(job.spec, bits=None))


def _without_idle(job: LayerJob) -> Float[Tensor, "g o n"]:
    """Weights that add next to nothing to their row's variance are zero; their mean goes into the bias."""
    each = job.weight.square() * job.moments.variance[:, None]
    return torch.where(each > IDLE * each.sum(2, keepdim=True), job.weight, 0.0)
