"""Images that make the network remember: moved by Adam until BatchNorm outputs have the statistics it keeps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, fx

from datafree import graph as g
from datafree.recipe import Inverted, MatchedImages, SignalRecipe
from datafree.records import ChannelStats, InputRange, Stats
from datafree.signals.answers import answered
from datafree.signals.batch_means import BatchMeans
from datafree.signals.inversion import PUBLISHED, AdamSchedule, competition, size, statistics_distance, total_variation
from datafree.signals.job import Competitor, SignalJob
from datafree.signals.moving import (
    SHORT,
    Matched,
    MatchingError,
    images_at_once,
    move_all,
    on_device,
    part_size,
    roughness,
)
from datafree.signals.propagated import propagated
from datafree.signals.scale import in_range
from datafree.signals.source import Signal, batch_statistics

STEPS = {"fast": 100, "normal": 200, "best": 400}  # ours
LARGE_STEPS = {"fast": 60, "normal": 120, "best": 400}  # ours, of networks that see a batch in parts
TIMED = 4  # images by which a step is timed
NOTHING = 1e-12  # variance of a BatchNorm whose gamma is 0 everywhere, which tells nothing of images


def matched_images(job: SignalJob) -> Signal:
    """Images moved until the network remembers them; without BatchNorm, until it answers."""
    assert isinstance(job.recipe, MatchedImages), "the table calls this for its own kinds"
    if job.has_no_memory:
        return answered(job)
    plain = propagated(job)
    if job.hindrance:
        return replace(plain, unmoved=job.hindrance)
    (unit,), moves_short = job.unit, schedule_of(job.recipe) is SHORT
    found = match(job, unit if moves_short else torch.randn(unit.shape, generator=job.rng))
    told = {"distance": found.distance, "asked": found.asked, "at_once": found.at_once}
    return replace(plain, inputs=(in_range(found.images, job.ranges[0]),), **told)


def schedule_of(method: MatchedImages) -> AdamSchedule:
    """How images of this kind and setting move."""
    if isinstance(method, Inverted) and method.setting != "short":
        return PUBLISHED[method.setting].schedule
    return SHORT


def steps_of(method: MatchedImages, teacher: fx.GraphModule) -> int:
    """Steps of the recipe, or those of the setting, the effort and the network's size, the same on every machine."""
    if method.steps is not None:
        return method.steps
    assert isinstance(method, Inverted), "only its settings bring steps"
    if method.setting != "short":
        return PUBLISHED[method.setting].steps
    return (LARGE_STEPS if images_at_once(teacher) < SHORT.batch else STEPS)[method.effort]


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
    schedule = schedule_of(method)
    if part_size(job, schedule) < min(schedule.batch, len(unit)):
        teacher = _channels_last(teacher)

    def objective(count: int) -> _Objective:
        targets = _targets(teacher, count, generator) if isinstance(method, Inverted) else None
        targets = None if targets is None else targets.to(work.device)
        return _Objective(teacher, stats, method, job.ranges[0], targets, job.competitor, BatchMeans(count))

    try:
        return move_all(job, unit, schedule, steps_of(method, job.teacher), lambda part: objective(len(part)))
    except MatchingError as error:
        raise MatchingError(f"{_first_not_finite(job, unit)}{error}") from None


def moving_seconds(teacher: fx.GraphModule, stats: Stats, method: SignalRecipe, count: int) -> float | None:
    """How long so many images of this kind would be moved here, from a few of them at one step; None = they are not.

    Right where memory and multiply-adds set the pace alike: both passes are run.
    """
    shape = g.shape(g.placeholders(teacher)[0])[1:]
    if not isinstance(method, MatchedImages) or not stats or len(g.placeholders(teacher)) > 1 or len(shape) < 2:
        return None
    few = min(TIMED, count, images_at_once(teacher))
    images = torch.randn((few, *shape), generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    if images_at_once(teacher) < min(count, SHORT.batch):
        teacher = _channels_last(teacher)
    measure = partial(BatchMeans(count + 1).statistics, slice(0, few))
    seconds = []
    for _ in range(2):  # the first time is longer
        start = time.perf_counter()
        with torch.enable_grad():
            mismatch(teacher, stats, images, relative_distance, measure=measure)[0].backward()
        seconds.append(time.perf_counter() - start)
    return steps_of(method, teacher) * min(seconds) * count / few


def _channels_last(teacher: fx.GraphModule) -> fx.GraphModule:
    """A copy that lies in memory as a network that sees parts is fastest."""
    return g.duplicate(teacher).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _first_not_finite(job: SignalJob, unit: Float[Tensor, "n c ..."]) -> str:
    """The first layer whose outputs are no numbers, or too large for their square to be one, as "name: "."""
    with torch.no_grad():
        for node, values in g.walk(job.teacher, (in_range(unit[:2], job.ranges[0]),)):
            if node not in values:
                values[node] = g.execute(node, values)
            if g.note(node).layer and not bool(torch.isfinite(values[node].square().sum())):
                return f"{g.layer_name(node)}: "
    return ""


@dataclass(frozen=True)
class _Objective:
    """The loss of one view of a batch: (loss, distance from BatchNorm's statistics, logits)."""

    teacher: fx.GraphModule
    stats: Stats
    method: MatchedImages
    input_range: InputRange
    targets: Int[Tensor, " n"] | None
    competitor: Competitor | None
    means: BatchMeans

    def __call__(self, view: Float[Tensor, "n c ..."], part: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        method, x = self.method, in_range(view, self.input_range)
        measure = partial(self.means.statistics, part)
        published = PUBLISHED.get(method.setting) if isinstance(method, Inverted) else None
        if published is None:
            distance, logits = mismatch(self.teacher, self.stats, x, relative_distance, measure=measure)
            loss = distance + method.smoothness * self.means.mean(part, "roughness", roughness(view))
            class_weight = method.class_weight if isinstance(method, Inverted) else 0.0
        else:
            distance, logits = mismatch(
                self.teacher, self.stats, x, statistics_distance, first=published.first, measure=measure
            )
            loss = published.statistics * distance + published.tv * total_variation(view) + published.l2 * size(view)
            class_weight = published.class_weight
        if self.targets is not None and logits is not None:
            wanted = F.cross_entropy(logits, self.targets[part])
            loss = loss + class_weight * self.means.mean(part, "class", wanted)
        if self.competitor is not None and logits is not None:
            agreement = competition(logits, self.competitor.logits(x))
            loss = loss + self.competitor.weight * self.means.mean(part, "competition", agreement)
        return loss, distance, logits


def of_all(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """The `measure` of a batch seen as a whole."""
    return batch_statistics(x)


def mismatch(
    teacher: fx.GraphModule,
    stats: Stats,
    x: Tensor,
    distance: Callable[[Tensor, Tensor, ChannelStats], Tensor],
    *,
    first: float = 1.0,
    measure: Callable[[str, Tensor], tuple[Tensor, Tensor]] = of_all,
) -> tuple[Tensor, Tensor | None]:
    """Distance of all BatchNorm outputs from what BatchNorm remembers, and the logits where there are any.

    Args:
        distance: of one BatchNorm: (mean (C,), std (C,), what it remembers) -> scalar.
        first: weight of the first BatchNorm; the others weigh 1.
        measure: name and value of one BatchNorm's output -> mean and std, those of a batch where `x` is a part of it.
    """
    total, value, weight = x.new_zeros(()), None, first
    for node, values in g.walk(teacher, (x,)):
        if node not in values:
            value = values[node] = g.execute(node, values)
        if node.name in stats:
            total = total + weight * distance(*measure(node.name, values[node]), stats[node.name])
            weight = 1.0
    logits = value if isinstance(value, Tensor) and value.dim() == 2 else None
    return total, logits


def relative_distance(mean: Tensor, std: Tensor, wanted: ChannelStats) -> Tensor:
    floor = (1e-2 * wanted.std.square().mean()).clamp(min=NOTHING)
    return (((mean - wanted.mean) ** 2 + (std - wanted.std) ** 2) / (wanted.std.square() + floor)).mean()


def _targets(teacher: fx.GraphModule, count: int, generator: torch.Generator) -> Int[Tensor, " n"] | None:
    """A random class for every image, where the network returns logits (N, classes)."""
    returned = g.outputs(teacher)
    if len(returned) != 1 or len(g.shape(returned[0])) != 2:
        return None
    return torch.randint(g.shape(returned[0])[1], (count,), generator=generator)
