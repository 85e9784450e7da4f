"""Images moved by Adam, batch by batch: steps, views, limits, and when it is no use to go on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, fx

from datafree import graph as g
from datafree.execution import ALL_IN_MEMORY, EVERY, MAKING_IMAGES, Checkpoints, Room, adam_state, restore_adam
from datafree.records import DivergedError, Stats
from datafree.signals.batch_means import BatchMeans
from datafree.signals.inversion import AdamSchedule
from datafree.signals.job import SignalJob
from datafree.signals.scale import in_range

# ours; 8-bit pixels end about two standard deviations from their mean
SHORT = AdamSchedule(
    lr=0.1, betas=(0.9, 0.99), annealed=True, batch=64, jitter=None, flips=True, pixel_limit=2.2, whole=False
)
AT_ONCE = 2**29  # bytes; larger parts are no faster
BACKWARD = 1.6  # of these bytes that are taken while a backward pass reads them
PATIENCE = 50  # steps after which the loss has to be below its start


class MatchingError(ValueError):
    """The loss is no longer a number, or rises; the device is not there."""


class MatchingDivergedError(MatchingError, DivergedError):
    """The loss is no longer a number, or rises."""


@dataclass(frozen=True)
class Matched:
    """Images at unit variance, and how near they came to what they were moved to: the distance before and after.

    asked: percent of the images that get the class they were asked to show; None = no class was asked for.
    at_once: images that the network saw at a time once the device's memory had run out; None = it did not.
    """

    images: Float[Tensor, "n c ..."]
    distance: tuple[float, float]
    asked: float | None = None
    at_once: int | None = None


def among_others(job: SignalJob, moved: Matched, every: int) -> tuple[Float[Tensor, "n c ..."]]:
    """The job's images as the network sees them, every so-manieth replaced by one that was moved."""
    unit = job.unit[0].clone()
    unit[::every] = moved.images
    return (in_range(unit, job.ranges[0]),)


@runtime_checkable
class Objective(Protocol):
    """What a batch of images is moved by: one view of a part of it -> (loss, what to tell of it, logits).

    targets: the class every image of the batch is to show; None = none is asked for.
    means: over the batch, of which a part is seen at a time.
    """

    @property
    def targets(self) -> Int[Tensor, " n"] | None: ...

    @property
    def means(self) -> BatchMeans: ...

    def __call__(self, view: Float[Tensor, "n c ..."], part: slice) -> tuple[Tensor, Tensor, Tensor | None]: ...


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


def images_at_once(teacher: fx.GraphModule, room: Room = ALL_IN_MEMORY) -> int:
    """As many images as leave no more than AT_ONCE bytes, or the room, for a backward pass to read; at least one."""
    most = AT_ONCE if room.size is None else min(AT_ONCE, int(room.size / BACKWARD))
    return max(1, most // max(1, 4 * g.numbers_held(teacher)[1]))


def part_size(job: SignalJob, schedule: AdamSchedule) -> int:
    """Images of a batch that the network sees at a time: all of them, but on a CPU no more than fit."""
    whole = schedule.whole or job.work.device != "cpu"
    return schedule.batch if whole else min(schedule.batch, images_at_once(job.teacher, job.work.room))


@dataclass(frozen=True)
class Movement:
    """How one batch is moved.

    at_once: images that the network sees at a time.
    """

    objective: Objective
    schedule: AdamSchedule
    steps: int
    at_once: int

    def rate(self, step: int) -> float:
        """Adam's at one step."""
        return self.schedule.lr * (
            0.5 * (1 + math.cos(math.pi * (step / self.steps))) if self.schedule.annealed else 1.0
        )


def move_all(
    job: SignalJob,
    unit: Float[Tensor, "n c ..."],
    schedule: AdamSchedule,
    steps: int,
    objective_of: Callable[[Float[Tensor, "m c ..."]], Objective],
) -> Matched:
    """Move images in batches, one after another, on the job's device; they come back to the CPU.

    Args:
        unit: starting images, zero mean and unit variance.
        objective_of: one batch as it starts, on the device -> what it is moved by.

    Raises:
        torch.OutOfMemoryError: the device has too little memory for one image.
    """
    parts, work, made = unit.split(schedule.batch), job.work, []
    planned = at_once = min(part_size(job, schedule), len(unit))
    for number, part in enumerate(parts):
        here = part.to(work.device)
        done, all_steps = number * steps, len(parts) * steps
        watch = lambda step, done=done: work.on_step(MAKING_IMAGES, done + step, all_steps)  # noqa: E731, B023
        while True:
            kept, before = work.checkpoints.part(_folder(number, at_once, planned)), job.rng.get_state()
            try:
                made.append(move(here, Movement(objective_of(here), schedule, steps, at_once), job.rng, watch, kept))
                break
            except torch.OutOfMemoryError:
                if at_once == 1:
                    raise
                at_once = math.ceil(at_once / 2)
                job.rng.set_state(before)
    weights = torch.tensor([len(part) for part in parts]) / len(unit)
    distance = tuple(float(sum(w * m.distance[i] for w, m in zip(weights, made, strict=True))) for i in (0, 1))
    asked = [m.asked for m in made if m.asked is not None]
    mean = float(sum(w * a for w, a in zip(weights, asked, strict=True))) if asked else None
    images = torch.cat([m.images for m in made]).cpu()
    return Matched(images, (distance[0], distance[1]), mean, at_once if at_once < planned else None)


def _folder(number: int, at_once: int, planned: int) -> str:
    """Where the state of a batch is kept: one of other parts is no use."""
    return f"images.{number}" if at_once == planned else f"images.{number}.{at_once}"


def move(
    unit: Tensor, how: Movement, generator: torch.Generator, watch: Callable[[int], None], checkpoints: Checkpoints
) -> Matched:
    """One batch of images of unit variance, all steps; the distance before and after."""
    objective, schedule, steps = how.objective, how.schedule, how.steps
    parts = [
        slice(int(i[0]), int(i[-1]) + 1) for i in torch.arange(len(unit)).chunk(math.ceil(len(unit) / how.at_once))
    ]
    images = [unit[part].clone().requires_grad_(True) for part in parts]
    optimizer = torch.optim.Adam(images, lr=schedule.lr, betas=schedule.betas)
    start, before, losses = 0, math.nan, []
    kept = checkpoints.read("state")
    if kept is not None:
        start, before, losses = (checkpoints.record("state")[k] for k in ("start", "before", "losses"))
        for part, own in zip(parts, images, strict=True):
            own.data.copy_(kept["images"][part])
        restore_adam(optimizer, kept)
        objective.means.restore(kept, parts)
        generator.set_state(kept["generator"])
    elif len(parts) > 1:
        before = _distance(images, parts, objective)[0]
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = how.rate(step)
        last = math.nan
        for part, own in zip(parts, images, strict=True):
            with torch.enable_grad():
                loss, distance, _ = objective(_view(own, schedule, step, generator), part)
                optimizer.zero_grad()
                loss.backward()
            before = float(distance.detach()) if math.isnan(before) else before
            optimizer.step()
            with torch.no_grad():
                own.clamp_(-schedule.pixel_limit, schedule.pixel_limit)
            last = float(loss.detach())
        losses.append(last)
        check_loss(losses, step)
        watch(step + 1)
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            made = {"images": torch.cat(images), "generator": generator.get_state()}
            state = made | objective.means.state() | adam_state(optimizer)
            checkpoints.write("state", state, {"start": step + 1, "before": before, "losses": losses})
    after, logits = _distance(images, parts, objective)
    targets = objective.targets
    asked = None if targets is None or logits is None else 100 * float((logits.argmax(1) == targets).float().mean())
    return Matched(torch.cat(images).detach(), (before, after), asked)


def _view(images: Tensor, schedule: AdamSchedule, step: int, generator: torch.Generator) -> Tensor:
    """The images as they are seen at one step: shifted, and every second time flipped."""
    sides, shortest = tuple(range(2, images.dim())), min(images.shape[2:])
    jitter = max(1, shortest // 12) if schedule.jitter is None else min(schedule.jitter, shortest - 1)
    shift = torch.randint(-jitter, jitter + 1, (len(sides),), generator=generator).tolist()
    view = torch.roll(images, shift, sides)
    return view.flip(3) if schedule.flips and step % 2 and len(sides) == 2 else view


@torch.no_grad()
def _distance(images: list[Tensor], parts: list[slice], objective: Objective) -> tuple[float, Tensor | None]:
    """What is told of the batch as it is, every part seen once, and its logits."""
    found = [objective(own, part)[1:] for part, own in zip(parts, images, strict=True)]
    logits = [y for _, y in found if y is not None]
    return float(found[-1][0]), torch.cat(logits) if logits else None


def check_loss(losses: list[float], step: int) -> None:
    """Stop where going on is a waste.

    Raises:
        MatchingError: the last loss is no number, or all of the last ones are above the first.
    """
    change = "take signal.setting=short, a larger signal.smoothness, or signal.kind=propagated"
    if not torch.isfinite(torch.tensor(losses[-1])):
        raise MatchingDivergedError(f"making images: the loss is {losses[-1]} at step {step}; {change}")
    if len(losses) > PATIENCE and min(losses[-PATIENCE // 2 :]) > losses[0]:
        raise MatchingDivergedError(
            f"making images: the loss is {losses[-1]:.4g} at step {step}, above the {losses[0]:.4g} it started from; "
            f"{change}"
        )


def roughness(x: Float[Tensor, "n c ..."]) -> Tensor:
    """Mean square difference of neighbouring pixels, unit-variance images, summed over the directions."""
    sides = [(dim, x.shape[dim] - 1) for dim in range(2, x.dim())]
    return reduce(torch.add, ((x.narrow(d, 1, n) - x.narrow(d, 0, n)).square().mean() for d, n in sides))
