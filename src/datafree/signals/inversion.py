"""Deep Inversion as published: its losses, weights, rates and step counts, and the competition of its adaptive form.

arXiv 1912.08795 (called DI below); numbers are those of the authors' program for CIFAR-10 ("paper parameters") and of
its 20 000 step setting for ImageNet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from datafree.records import ChannelStats

TEMPERATURE = 3.0  # of the competition
CLIPPED = (0.01, 0.99)  # probabilities in the competition


@dataclass(frozen=True)
class AdamSchedule:
    """How Adam moves a batch of images, and how they are seen at every step."""

    lr: float
    betas: tuple[float, float]
    annealed: bool  # cosine to zero
    batch: int  # images moved together; their joint statistics are what is matched
    jitter: int | None  # pixels of the random shift; None = a twelfth of the shorter side
    flips: bool  # every second view is flipped
    pixel_limit: float  # largest unit-variance pixel
    whole: bool = True  # the network sees the batch at once; else as many images at a time as leave memory alone


@dataclass(frozen=True)
class Published:
    """One setting of Deep Inversion: loss = class_weight CE + statistics R_BN + tv R_TV + l2 |x|."""

    schedule: AdamSchedule
    steps: int
    class_weight: float
    statistics: float
    first: float  # times this for the first BatchNorm
    tv: float
    l2: float


PUBLISHED = {
    "cifar10": Published(
        AdamSchedule(0.05, (0.9, 0.999), False, 256, 2, False, math.inf), 2000, 1.0, 1.0, 1.0, 2.5e-5, 0.0
    ),
    "imagenet": Published(
        AdamSchedule(0.25, (0.9, 0.999), True, 84, 30, True, 2.2), 20000, 1.0, 0.01, 10.0, 1e-4, 1e-5
    ),
}
"""Settings by name.

Weight of "cifar10"'s statistics: the paper tries 1, 5, 10, 100; its program has 10 for a ResNet-34. On ResNet-20, 64
images, 10 leaves 92 % of the images with the class asked for, 1 all of them, BatchNorm's distance being the same (12).
Batch of "imagenet": 152 in the paper, 84 in the program.
"""


def statistics_distance(mean: Float[Tensor, " c"], std: Float[Tensor, " c"], wanted: ChannelStats) -> Tensor:
    """|mean - running_mean|_2 + |var - running_var|_2 of one BatchNorm's input (DI, eq. 4), read at its output.

    BatchNorm is folded, so the differences are those of its output over its gain. Dead channels say nothing of their
    input and are left out. Where the gain is not known, the differences are the output's own.
    """
    gain = torch.ones_like(mean) if wanted.gain is None else wanted.gain
    alive = gain.abs() > 1e-3 * gain.abs().amax()
    safe = torch.where(alive, gain, torch.ones_like(gain))
    shift = torch.where(alive, (mean - wanted.mean) / safe, 0.0)
    spread = torch.where(alive, (std.square() - wanted.std.square()) / safe.square(), 0.0)
    return _norm(shift) + _norm(spread)


def total_variation(x: Float[Tensor, "n c ..."]) -> Tensor:
    """Sum over four directions of the 2-norm of neighbours' differences (DI, R_TV); of a sequence, along it."""
    if x.dim() == 3:
        return _norm(x[..., :-1] - x[..., 1:])
    return (
        _norm(x[..., :-1] - x[..., 1:])
        + _norm(x[..., :-1, :] - x[..., 1:, :])
        + _norm(x[..., 1:, :-1] - x[..., :-1, 1:])
        + _norm(x[..., :-1, :-1] - x[..., 1:, 1:])
    )


def size(x: Tensor) -> Tensor:
    """2-norm of the whole batch (DI, R_l2)."""
    return _norm(x)


def competition(teacher: Float[Tensor, "n c"], student: Float[Tensor, "n c"]) -> Tensor:
    """1 - JS(teacher, student), of logits at temperature 3, clipped to [0, 1] (DI, eq. 7; adaptive form).

    Small where the two disagree, so images move to where the student is wrong.
    """
    p, q = (F.softmax(logits / TEMPERATURE, 1) for logits in (student, teacher))
    middle = ((p + q) / 2).clamp(*CLIPPED)
    first, second = (F.kl_div(r.clamp(*CLIPPED).log(), middle, reduction="batchmean") for r in (p, q))
    return 1 - ((first + second) / 2).clamp(0, 1)


def _norm(x: Tensor) -> Tensor:
    """2-norm whose gradient at zero is zero."""
    return (x.square().sum() + 1e-12).sqrt()
