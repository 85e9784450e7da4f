"""Real images, when there are some after all."""

from __future__ import annotations

from datafree.recipe import Loader
from datafree.signals.fit import check_fit, fit
from datafree.signals.job import SignalJob
from datafree.signals.source import Signal


def given_images(job: SignalJob) -> Signal:
    """The images as they were given; nothing is known of the values real ones may have."""
    assert isinstance(job.recipe, Loader), "the table calls this for its own kind"
    at_batchnorm = "restandardise" if job.recipe.restandardise else "keep"
    are_pictures = len(job.inputs) == 1 and job.inputs[0].dim() == 4
    found = fit(job.teacher, job.stats, job.inputs[0]) if are_pictures else None
    check_fit(found)
    return Signal(job.recipe.kind, job.inputs, job.stats, at_batchnorm, seed=job.seed, fit=found)
