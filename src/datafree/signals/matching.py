"""Images that make the network remember: moved by Adam until BatchNorm outputs have the statistics it keeps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, fx

from datafree import graph as g
from datafree.execution import EVERY, Checkpoints, adam_state, restore_adam
from datafree.recipe import Inverted, MatchedImages
from datafree.records import ChannelStats, InputRange, Stats
from datafree.signals.inversion import PUBLISHED, AdamSchedule, competition, size, statistics_distance, total_variation
from datafree.signals.job import Competitor, SignalJob
from datafree.signals.propagated import propagated
from datafree.signals.scale import in_range
from datafree.signals.source import Signal, batch_statistics

# ours; 8-bit pixels end about two standard deviations from their mean
SHORT = AdamSchedule(lr=0.1, betas=(0.9, 0.99), annealed=True, batch=64, jitter=None, flips=True, pixel_limit=2.2)
SHORT_STEPS = 200  # ours
PATIENCE = 50  # steps after which the loss has to be below its start


class MatchingError(ValueError):
    """The loss is no longer a number, or rises; the device is not there."""


def matched_images(job: SignalJob) -> Signal:
    """Images moved until the network remembers them; as they were where there is nothing to move them to."""
    assert isinstance(job.recipe, MatchedImages), "the table calls this for its own kinds"
    plain = propagated(job)
    if job.hindrance:
        return replace(plain, unmoved=job.hindrance)
    (unit,), moves_short = job.unit, schedule_of(job.recipe) is SHORT
    found = match(job, unit if moves_short else torch.randn(unit.shape, generator=job.rng))
    return replace(plain, inputs=(in_range(found.images, job.ranges[0]),), distance=found.distance, asked=found.asked)


@dataclass(frozen=True)
class Matched:
    """Images at unit variance, and how near BatchNorm's statistics they came: the distance before and after.

    asked: percent of the images that get the class they were asked to show; None = no class was asked for.
    """

    images: Float[Tensor, "n c ..."]
    distance: tuple[float, float]
    asked: float | None = None


def schedule_of(method: MatchedImages) -> AdamSchedule:
    """How images of this kind and setting move."""
    if isinstance(method, Inverted) and method.setting != "short":
        return PUBLISHED[method.setting].schedule
    return SHORT


def steps_of(method: MatchedImages) -> int:
    """Steps of the recipe, or those of the setting."""
    if method.steps is not None:
        return method.steps
    assert isinstance(method, Inverted), "only its settings bring steps"
    return SHORT_STEPS if method.setting == "short" else PUBLISHED[method.setting].steps


def match(job: SignalJob, unit: Float[Tensor, "n c ..."]) -> Matched:
    """Move images by Adam until the outputs of BatchNorm have the mean and standard deviation it remembers.

    Minimise, over images x seen through a random shift and flip at every step,

        sum over BatchNorms of mean_c [(m_c - mean_c)^2 + (d_c - std_c)^2] / std_c^2  +  a CE(logits, class)  +  b TV(x)

    with m, d the batch's mean and standard deviation. The first term is DeepInversion's (arXiv 1912.08795, eq. 4),
    normalised per channel (ours); classes are asked for by `inverted` alone; the start from dead leaves and the step
    counts are ours. With another `setting` losses, start and steps are Deep Inversion's own, see `inversion.py`.

    Steps are taken on the job's device, and the images come back to the CPU; batches, and states of the one under way,
    are kept, and where they are found, work goes on from them.

    Args:
        unit: starting images, zero mean and unit variance; the network sees `unit * std + mean` of the job's range.

    Raises:
        MatchingError: the loss is not finite, or has not fallen below its start; names the step and what to change.
            The device is not there.
    """
    method, work, generator = job.recipe, job.work, job.rng
    assert isinstance(method, MatchedImages), "images are moved for these kinds"
    teacher, stats = on_device(job.teacher, job.stats, work.device)
    schedule, total = schedule_of(method), steps_of(method)
    parts = unit.split(schedule.batch)
    made = []
    for number, part in enumerate(parts):
        targets = _targets(teacher, len(part), generator) if isinstance(method, Inverted) else None
        targets = None if targets is None else targets.to(work.device)
        objective = _Objective(teacher, stats, method, job.ranges[0], targets, job.competitor)
        done, all_steps = number * total, len(parts) * total
        watch = lambda step, done=done: work.on_step("making images", done + step, all_steps)  # noqa: E731, B023
        kept = work.checkpoints.part(f"images.{number}")
        made.append(_move(part.to(work.device), objective, schedule, total, generator, watch, kept))
    weights = torch.tensor([len(part) for part in parts]) / len(unit)
    distance = tuple(float(sum(w * m.distance[i] for w, m in zip(weights, made, strict=True))) for i in (0, 1))
    asked = [m.asked for m in made if m.asked is not None]
    mean = float(sum(w * a for w, a in zip(weights, asked, strict=True))) if asked else None
    return Matched(torch.cat([m.images for m in made]).cpu(), (distance[0], distance[1]), mean)


def on_device(teacher: fx.GraphModule, stats: Stats, device: str) -> tuple[fx.GraphModule, Stats]:
    """Copies on another device than the CPU; MatchingError where it is not there."""
    if device == "cpu":
        return teacher, stats
    try:
        moved = g.duplicate(teacher).to(device)
        return moved, {n: s.to(device) for n, s in stats.items()}
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise MatchingError(
            f"device {device!r} cannot be used: {reason}; use 'cpu', or 'cuda' where there is a GPU"
        ) from None


@dataclass(frozen=True)
class _Objective:
    """The loss of one view of a batch: (loss, distance from BatchNorm's statistics, logits)."""

    teacher: fx.GraphModule
    stats: Stats
    method: MatchedImages
    input_range: InputRange
    targets: Int[Tensor, " n"] | None
    competitor: Competitor | None

    def __call__(self, view: Float[Tensor, "n c ..."]) -> tuple[Tensor, Tensor, Tensor | None]:
        method, x = self.method, in_range(view, self.input_range)
        published = PUBLISHED.get(method.setting) if isinstance(method, Inverted) else None
        if published is None:
            distance, logits = mismatch(self.teacher, self.stats, x, relative_distance)
            loss = distance + method.smoothness * _roughness(view)
            class_weight = method.class_weight if isinstance(method, Inverted) else 0.0
        else:
            distance, logits = mismatch(self.teacher, self.stats, x, statistics_distance, first=published.first)
            loss = published.statistics * distance + published.tv * total_variation(view) + published.l2 * size(view)
            class_weight = published.class_weight
        if self.targets is not None and logits is not None:
            loss = loss + class_weight * F.cross_entropy(logits, self.targets)
        if self.competitor is not None and logits is not None:
            loss = loss + self.competitor.weight * competition(logits, self.competitor.logits(x))
        return loss, distance, logits


def _move(
    unit: Tensor,
    objective: _Objective,
    schedule: AdamSchedule,
    steps: int,
    generator: torch.Generator,
    watch: Callable[[int], None],
    checkpoints: Checkpoints,
) -> Matched:
    """One batch, all steps."""
    images = unit.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([images], lr=schedule.lr, betas=schedule.betas)
    sides, shortest = tuple(range(2, unit.dim())), min(unit.shape[2:])
    jitter = max(1, shortest // 12) if schedule.jitter is None else min(schedule.jitter, shortest - 1)
    start, before, losses = 0, math.nan, []
    kept = checkpoints.read("state")
    if kept is not None:
        start, before, losses = (checkpoints.record("state")[k] for k in ("start", "before", "losses"))
        images.data.copy_(kept["images"])
        restore_adam(optimizer, kept)
        generator.set_state(kept["generator"])
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr * (_cosine(step / steps) if schedule.annealed else 1.0)
        shift = torch.randint(-jitter, jitter + 1, (len(sides),), generator=generator).tolist()
        with torch.enable_grad():
            view = torch.roll(images, shift, sides)
            view = view.flip(3) if schedule.flips and step % 2 and len(sides) == 2 else view
            loss, distance, _ = objective(view)
            optimizer.zero_grad()
            loss.backward()
        losses.append(float(loss.detach()))
        before = before if step else float(distance.detach())
        check_loss(losses, step)
        optimizer.step()
        with torch.no_grad():
            images.clamp_(-schedule.pixel_limit, schedule.pixel_limit)
        watch(step + 1)
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            state = {"images": images, "generator": generator.get_state(), **adam_state(optimizer)}
            checkpoints.write("state", state, {"start": step + 1, "before": before, "losses": losses})
    with torch.no_grad():
        _, last, logits = objective(images.detach())
    targets = objective.targets
    asked = None if targets is None or logits is None else 100 * float((logits.argmax(1) == targets).float().mean())
    return Matched(images.detach(), (before, float(last)), asked)


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def check_loss(losses: list[float], step: int) -> None:
    """Stop where going on is a waste.

    Raises:
        MatchingError: the last loss is no number, or all of the last ones are above the first.
    """
    change = "take signal.setting=short, a larger signal.smoothness, or signal.kind=propagated"
    if not torch.isfinite(torch.tensor(losses[-1])):
        raise MatchingError(f"making images: the loss is {losses[-1]} at step {step}; {change}")
    if len(losses) > PATIENCE and min(losses[-PATIENCE // 2 :]) > losses[0]:
        raise MatchingError(
            f"making images: the loss is {losses[-1]:.4g} at step {step}, above the {losses[0]:.4g} it started from; "
            f"{change}"
        )


def mismatch(
    teacher: fx.GraphModule,
    stats: Stats,
    x: Tensor,
    distance: Callable[[Tensor, Tensor, ChannelStats], Tensor],
    *,
    first: float = 1.0,
) -> tuple[Tensor, Tensor | None]:
    """Distance of all BatchNorm outputs from what BatchNorm remembers, and the logits where there are any.

    Args:
        distance: of one BatchNorm: (mean (C,), std (C,), what it remembers) -> scalar.
        first: weight of the first BatchNorm; the others weigh 1.
    """
    total, value, weight = x.new_zeros(()), None, first
    for node, values in g.walk(teacher, (x,)):
        if node not in values:
            value = values[node] = g.execute(node, values)
        if node.name in stats:
            total = total + weight * distance(*batch_statistics(values[node]), stats[node.name])
            weight = 1.0
    logits = value if isinstance(value, Tensor) and value.dim() == 2 else None
    return total, logits


def relative_distance(mean: Tensor, std: Tensor, wanted: ChannelStats) -> Tensor:
    floor = 1e-2 * wanted.std.square().mean()
    return (((mean - wanted.mean) ** 2 + (std - wanted.std) ** 2) / (wanted.std.square() + floor)).mean()


def _roughness(x: Float[Tensor, "n c ..."]) -> Tensor:
    """Mean square difference of neighbouring pixels, unit-variance images, summed over the directions."""
    sides = [(dim, x.shape[dim] - 1) for dim in range(2, x.dim())]
    return reduce(torch.add, ((x.narrow(d, 1, n) - x.narrow(d, 0, n)).square().mean() for d, n in sides))


def _targets(teacher: fx.GraphModule, count: int, generator: torch.Generator) -> Int[Tensor, " n"] | None:
    """A random class for every image, where the network returns logits (N, classes)."""
    returned = g.outputs(teacher)
    if len(returned) != 1 or len(g.shape(returned[0])) != 2:
        return None
    return torch.randint(g.shape(returned[0])[1], (count,), generator=generator)
