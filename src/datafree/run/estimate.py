"""What was lost, predicted without data: how far the student turns the logits, and how far answers stand out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from datafree import graph as g
from datafree.recipe import Matched, Propagated
from datafree.records import Estimate
from datafree.run.record import Run
from datafree.signals import make_signal, num_images, signal_job

HELD_OUT = 2**20  # added to the run's seed: other images than those the student was solved on
FEWEST = 64  # images that `compress` takes
SURER = 1.35  # real answers stand as much noise as Gaussian ones with this times less; over networks (ours)
POWER = 2.5  # of how far answers stand out; over networks (ours)
SPREAD = 3.0  # nine in ten students lie between this times more and less noise; over networks (ours)
LEAST = 0.5  # half of the interval at least, points
LEAST_COSINE = 0.01  # below it nothing of the answer is left
DRAWS = 2**22  # logits drawn for one rate, all classes together
MOST_ANSWERS = 2**13


@dataclass(frozen=True)
class Effort:
    """How much an estimate may cost: images looked at, and as many procedural ones; steps of Adam on the first."""

    images: int
    steps: int
    most_steps: int  # where images are small, for a step costs less there

    @property
    def passes(self) -> int:
        """Forward passes of one image; a backward pass counts as two."""
        return 2 * self.images * self.steps + 3 * self.images


EFFORTS = {"brief": Effort(4, 4, 4), "full": Effort(16, 5, 14)}
"""On six networks, 17 students each, `brief` was off by 5.8 points and `full` by 5.0, in the same order."""


class EstimateError(ValueError):
    """A network whose answers cannot be compared."""


def estimate(run: Run, *, effort: str = "brief") -> Estimate:
    """Predict on how many images the student agrees with the float network; no data is read.

    On a few images matched to BatchNorm's statistics, others than those the layers were solved on, the student's
    logits are a multiple of the teacher's and noise: with a = angle(student, teacher), each image's mean taken away,
    t = tan(a) is the noise as a share of what is left of the answer. Were logits independent Gaussians, answers would
    stay as often as `same_answers(t, C)`. Those of a trained network stand out further: with h the mean of the largest
    logit over the logits' deviation, and h_C that of C Gaussians, noise counts as                            (ours)

        t / (SURER (h / h_C)^POWER)

    The teacher's deviation and h are also taken on procedural images. Both constants were chosen over several networks
    together, as was the width of the interval (bench/tables/estimate.py).

    Args:
        effort: "brief", on four images, or "full", on sixteen, for five times the price.

    Raises:
        EstimateError: the network does not return one tensor of logits (N, classes); no such effort.
    """
    if effort not in EFFORTS:
        raise EstimateError(f"{effort!r} is no effort of an estimate; allowed are {', '.join(EFFORTS)}")
    run = run.with_ends(torch.float32)  # what other types round away is no matter of the student
    return predict(run.student, calibrate(run, EFFORTS[effort]))


@dataclass(frozen=True)
class Yardstick:
    """What is known of one network before any student is looked at.

    images: matched to BatchNorm's statistics, one tensor (n, ...) for each input.
    logits: the teacher's answers to them.
    sureness: the noise of a student is divided by it.
    """

    images: tuple[Tensor, ...]
    logits: Float[Tensor, "n c"]
    sureness: float


def calibrate(run: Run, effort: Effort = EFFORTS["brief"]) -> Yardstick:
    """Make a few images and look at the teacher's answers.

    Raises:
        EstimateError: the network does not return one tensor of logits (N, classes).
    """
    shapes = [g.shape(node) for node in g.outputs(run.teacher)]
    if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][1] < 2:
        raise EstimateError(f"an estimate needs logits (N, classes); this network returns {shapes}; nothing to compare")
    seed = run.summary.seed + HELD_OUT
    kind = Matched(images=effort.images, steps=num_steps(run, effort))
    probe = Propagated(images=effort.images)
    matched = make_signal(run.teacher, run.stats, kind, seed=seed, input_range=run.input_range).inputs
    probes = signal_job(run.teacher, run.stats, probe, seed, run.input_range).inputs
    logits, others = (logits_of(run.teacher, images) for images in (matched, probes))
    return Yardstick(matched, logits, sureness(logits, others))


def num_steps(run: Run, effort: Effort) -> int:
    """Steps on the images: as many more where they are small as `compress` takes more images there."""
    shape = g.shape(g.placeholders(run.teacher)[0])[1:]
    return min(effort.most_steps, effort.steps * num_images(shape, most=512) // FEWEST)


def logits_of(net: nn.Module, images: tuple[Tensor, ...]) -> Float[Tensor, "n c"]:
    """A network's logits, the mean of each image's taken away: no answer depends on it."""
    with torch.no_grad():
        return centred(net(*images))


def centred(logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    return logits - logits.mean(1, keepdim=True)


def sureness(matched: Float[Tensor, "n c"], probes: Float[Tensor, "m c"]) -> float:
    """How much more noise a network's answers stand than Gaussian ones, of its logits on matched images and on probes.

    Matched images move the logits less than real ones where they had few steps, and so may probes: noise is measured
    on the first, the logits' deviation and how far answers stand out on both.
    """
    sizes = torch.stack([x.square().mean().sqrt().clamp(min=1e-12) for x in (matched, probes)])
    heights = torch.stack([x.amax(1).mean() for x in (matched, probes)]) / sizes
    stands_out = float(heights.log().mean().exp()) / gaussian_height(matched.shape[1])
    return SURER * stands_out**POWER * float(sizes.square().mean().sqrt() / sizes[0])


def predict(student: nn.Module, yardstick: Yardstick) -> Estimate:
    """Read one student's agreement off its noise."""
    noise = noise_of(yardstick.logits, logits_of(student, yardstick.images)) / yardstick.sureness
    num_classes = yardstick.logits.shape[1]
    low, middle, high = (100 * same_answers(noise * f, num_classes) for f in (SPREAD, 1.0, 1 / SPREAD))
    return Estimate(middle, max(0.0, min(low, middle - LEAST)), min(100.0, max(high, middle + LEAST)))


def noise_of(wanted: Float[Tensor, "n c"], found: Float[Tensor, "n c"]) -> float:
    """tan of the angle between a teacher's and a student's centred logits; 100 where nothing is left of the answer."""
    x, y = wanted.double(), found.double()
    lengths = float(x.norm() * y.norm())
    cosine = float((x * y).sum()) / lengths if lengths else 0.0
    return math.tan(math.acos(min(max(cosine, LEAST_COSINE), 1.0)))


@lru_cache(maxsize=1)
def gaussian_logits(num_classes: int) -> tuple[Float[Tensor, "k c"], Float[Tensor, "k c"]]:
    """Logits drawn as independent Gaussians, and as much noise; each centred and of unit deviation."""
    generator = torch.Generator().manual_seed(0)
    count = max(1, min(MOST_ANSWERS, DRAWS // num_classes))
    draws = (centred(torch.randn(count, num_classes, generator=generator)) for _ in range(2))
    logits, noise = (x / x.square().mean().sqrt() for x in draws)
    return logits, noise


def gaussian_height(num_classes: int) -> float:
    """h_C: how far the largest of C centred Gaussians lies over their mean, in deviations."""
    return float(gaussian_logits(num_classes)[0].amax(1).mean())


def same_answers(noise: float, num_classes: int) -> float:
    """Share of Gaussian logits x whose largest is also the largest of x + noise y, y drawn as x was."""
    if not math.isfinite(noise):
        return 1 / num_classes
    x, y = gaussian_logits(num_classes)
    return float((x.argmax(1) == (x + noise * y).argmax(1)).double().mean())


def with_estimate(run: Run, *, effort: str = "brief") -> Run:
    """The run with its estimate in the summary; or with the reason why there is none among the warnings."""
    try:
        return replace(run, summary=replace(run.summary, estimate=estimate(run, effort=effort)))
    except EstimateError as error:
        return replace(run, summary=replace(run.summary, warnings=(*run.summary.warnings, str(error))))
