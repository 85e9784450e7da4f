"""How far given images are from what BatchNorm remembers, and whether they come nearer if read otherwise (ours).

Wrong scale, wrong order of channels and a missing normalisation all show at once: statistics of the first layers are
then far from what is remembered, and one of a few other readings is much nearer.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, fx

from datafree.execution import uncounted
from datafree.records import NATURAL_MEAN, NATURAL_STD, Fit, Stats
from datafree.signals.matching import mismatch, relative_distance

NEARER = 0.5  # times the distance as given: another reading is named
FAR = 10.0  # as given, where it is no use to go on: three deviations in every channel; noise of unit deviation has 1
NUM_IMAGES = 32


class FitError(ValueError):
    """Images that are read in the wrong way."""


def check_fit(found: Fit | None) -> None:
    """Refuse images that are far from what BatchNorm remembers where another reading comes much nearer.

    Raises:
        FitError: says which.
    """
    if found is not None and found.nearer and found.distance > FAR:
        raise FitError(
            f"the images given are not as the network was trained: a distance of {found.distance:.2g} from what "
            f"BatchNorm remembers, and {found.other:.2g} {found.nearer}; give them so"
        )


def fit(teacher: fx.GraphModule, stats: Stats, images: Float[Tensor, "n c h w"]) -> Fit | None:
    """Compare images with the statistics, as they are and read in other ways; None where nothing is remembered."""
    if not stats:
        return None
    x = images[:NUM_IMAGES]
    with torch.no_grad(), uncounted():  # a look at the images
        given = _distance(teacher, stats, x)
        found = {name: _distance(teacher, stats, other) for name, other in _readings(x)}
    best = min(found, key=lambda name: found[name])
    return Fit(given, best, found[best]) if found[best] < NEARER * given else Fit(given)


def _distance(teacher: fx.GraphModule, stats: Stats, x: Tensor) -> float:
    return float(mismatch(teacher, stats, x, relative_distance)[0]) / len(stats)


def _readings(x: Float[Tensor, "n c h w"]) -> Iterator[tuple[str, Tensor]]:
    """What users mix up, by what they would have to do."""
    yield "divided by 255", x / 255
    yield "times 255", x * 255
    yield "from -1 to 1 instead of 0 to 1", 2 * x - 1
    yield "from 0 to 1 instead of -1 to 1", (x + 1) / 2
    if x.shape[1] == len(NATURAL_MEAN):
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (NATURAL_MEAN, NATURAL_STD))
        yield "with their channels in the other order (RGB for BGR)", x.flip(1)
        yield "normalised with ImageNet's mean and std", (x - mean) / std
        yield "normalised with ImageNet's mean and std, from pixels of 0 to 255", (x / 255 - mean) / std
        yield "not normalised", x * std + mean
