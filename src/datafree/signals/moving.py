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
from datafree.execution import EVERY, MAKING_IMAGES, Checkpoints, adam_state, restore_adam
from datafree.records import DivergedError, Stats
from datafree.signals.inversion import AdamSchedule
from datafree.signals.job import SignalJob
from datafree.signals.scale import in_range

# ours; 8-bit pixels end about two standard deviations from their mean
SHORT = AdamSchedule(lr=0.1, betas=(0.9, 0.99), annealed=True, batch=64, jitter=None, flips=True, pixel_limit=2.2)
PATIENCE = 50  # steps after which the loss has to be below its start


class MatchingError(ValueError):
    """The loss is no longer a number, or rises; the device is not there."""


class MatchingDivergedError(MatchingError, DivergedError):
    """The loss is no longer a number, or rises."""


@dataclass(frozen=True)
class Matched:
    """Images at unit variance, and how near they came to what they were moved to: the distance before and after.

    asked: percent of the images that get the class they were asked to show; None = no class was asked for.
    """

    images: Float[Tensor, "n c ..."]
    distance: tuple[float, float]
    asked: float | None = None


def among_others(job: SignalJob, moved: Matched, every: int) -> tuple[Float[Tensor, "n c ..."]]:
    """The job's images as the network sees them, every so-manieth replaced by one that was moved."""
    unit = job.unit[0].clone()
    unit[::every] = moved.images
    return (in_range(unit, job.ranges[0]),)


@runtime_checkable
class Objective(Protocol):
    """What a batch of images is moved by: one view of it -> (loss, the part of it to tell of, logits)."""

    @property
    def targets(self) -> Int[Tensor, " n"] | None: ...

    def __call__(self, view: Float[Tensor, "n c ..."]) -> tuple[Tensor, Tensor, Tensor | None]: ...


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
    """
    parts, work, made = unit.split(schedule.batch), job.work, []
    for number, part in enumerate(parts):
        here = part.to(work.device)
        done, all_steps = number * steps, len(parts) * steps
        watch = lambda step, done=done: work.on_step(MAKING_IMAGES, done + step, all_steps)  # noqa: E731, B023
        kept = work.checkpoints.part(f"images.{number}")
        made.append(move(here, objective_of(here), schedule, steps, job.rng, watch, kept))
    weights = torch.tensor([len(part) for part in parts]) / len(unit)
    distance = tuple(float(sum(w * m.distance[i] for w, m in zip(weights, made, strict=True))) for i in (0, 1))
    asked = [m.asked for m in made if m.asked is not None]
    mean = float(sum(w * a for w, a in zip(weights, asked, strict=True))) if asked else None
    return Matched(torch.cat([m.images for m in made]).cpu(), (distance[0], distance[1]), mean)


def move(
    unit: Tensor,
    objective: Objective,
    schedule: AdamSchedule,
    steps: int,
    generator: torch.Generator,
    watch: Callable[[int], None],
    checkpoints: Checkpoints,
) -> Matched:
    """One batch of images of unit variance, all steps; the distance is that before and after."""
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
