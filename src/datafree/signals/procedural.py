"""Procedural images, as they are where BatchNorm says enough, and moved where it says little or nothing."""

from __future__ import annotations

from dataclasses import replace

from datafree import graph as g
from datafree.recipe import Matched
from datafree.signals.answers import answered
from datafree.signals.job import SignalJob
from datafree.signals.matching import match
from datafree.signals.moving import MatchingError, among_others
from datafree.signals.propagated import propagated
from datafree.signals.source import Signal

LITTLE = 0.25  # BatchNorms a layer; most networks have nearly one
MOVED = 4  # every so-manieth image: the range of a tensor needs no more, and moving takes long


def procedural_images(job: SignalJob) -> Signal:
    """As they are; without BatchNorm moved until the network answers, with little of it until that remembers them."""
    if job.has_no_memory:
        return answered(job)
    return partly_matched(job) if _has_little_memory(job) else propagated(job)


def partly_matched(job: SignalJob) -> Signal:
    """Every fourth image moved until the few BatchNorms remember it (ours).

    Between them nothing is re-standardised, so that tensors would have the ranges of procedural images alone: a third
    of those of text, in a network that looks for it (bench/results/rapidocr.md).
    """
    plain = propagated(job)
    if job.hindrance:
        return replace(plain, unmoved=job.hindrance)
    try:
        found = match(replace(job, recipe=Matched()), job.unit[0][::MOVED])
    except MatchingError as error:
        return replace(plain, unmoved=str(error))
    if not found.distance[1] < found.distance[0]:
        return replace(plain, unmoved="they came no nearer to what the few BatchNorms remember")
    return replace(plain, inputs=among_others(job, found, MOVED), distance=found.distance)


def _has_little_memory(job: SignalJob) -> bool:
    """Whether most layers are far from any BatchNorm."""
    num_layers = sum(bool(g.note(node).layer) for node in job.teacher.graph.nodes)
    return job.given is None and len(job.stats) < LITTLE * num_layers
