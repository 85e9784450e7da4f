"""Images for a network without BatchNorm: nothing remembers the data, but its answers tell what they were like."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, fx
from torch.utils._pytree import tree_flatten

from datafree import graph as g
from datafree.records import InputRange
from datafree.signals.batch_means import BatchMeans
from datafree.signals.job import SignalJob
from datafree.signals.moving import SHORT, Matched, MatchingError, among_others, move_all, on_device, roughness
from datafree.signals.propagated import propagated
from datafree.signals.scale import in_range
from datafree.signals.source import Signal
from datafree.signals.varied import varied

STEPS = 15  # ours; 5 leave half of the gain, 40 add none
SCHEDULE = replace(SHORT, lr=0.05)  # ours; at 0.1 no class is shown better, and early layers see what no photograph has
SMOOTHNESS = 0.1  # ours
MOVED = 2  # every so-manieth image


def answered(job: SignalJob) -> Signal:
    """Procedural images, varied as photographs are, every second one moved a few steps towards a random class.

    The moved ones use logits as photographs do; the others stay, for no network should be judged by images made to
    please it alone (ours). None is moved, with the reason in `unmoved`, where the loss has no gradient or does not
    fall.
    """
    job = replace(job, unit=tuple(varied(x, SCHEDULE.pixel_limit, job.rng) for x in job.unit))
    plain, nothing = propagated(job), _hindrance(job)
    if nothing:
        return replace(plain, unmoved=nothing)
    network, _ = on_device(job.teacher, {}, job.work.device)
    try:
        found, towards = _move(job, network)
    except MatchingError as error:
        return replace(plain, unmoved=f"there is no BatchNorm, and {error}")
    before, after = found.distance
    if not after < before:
        said = f"the loss of {towards} went from {before:.3g} to {after:.3g}"
        return replace(plain, unmoved=f"there is no BatchNorm, and {said}")
    images = among_others(job, found, MOVED)
    return replace(plain, inputs=images, towards=towards, distance=found.distance, asked=found.asked)


def _hindrance(job: SignalJob) -> str:
    """Why images cannot be moved; "" = they can."""
    if len(job.unit) != 1:
        return f"there is no BatchNorm, and the network has {len(job.unit)} inputs"
    if job.unit[0].dim() < 3:
        return "there is no BatchNorm, and the network's input is no image"
    with torch.no_grad():
        readable = _readable(job.teacher(in_range(job.unit[0][:2], job.ranges[0])), 2)
    return "" if readable else "there is no BatchNorm, and no output is one float tensor an image"


def _move(job: SignalJob, network: fx.GraphModule) -> tuple[Matched, str]:
    classes = num_classes(network)

    def objective(start: Tensor) -> Answers:
        reference = () if classes else _reference(network, in_range(start, job.ranges[0]))
        count = classes or 2 * sum(mean.shape[1] for mean, _ in reference)
        targets = torch.randint(count, (len(start),), generator=job.rng).to(start.device)
        return Answers(network, job.ranges[0], targets, BatchMeans(len(start)), reference)

    found = move_all(job, job.unit[0][::MOVED], SCHEDULE, STEPS, objective)
    return found, "random classes" if classes else "random outputs"


def num_classes(network: fx.GraphModule) -> int:
    """Classes of a network that returns logits (N, classes) alone, two and more; 0 = it is no classifier."""
    shapes = [g.shape(node) for node in g.outputs(network)]
    return shapes[0][1] if len(shapes) == 1 and len(shapes[0]) == 2 and shapes[0][1] > 1 else 0


@dataclass(frozen=True)
class Answers:
    """CE(scores, target) + b TV(x) of one view of a batch, each image with a random target (ours).

    Scores are the logits of a classifier. Of other networks every output is averaged over positions and brought to
    zero mean and unit deviation over the batch as it starts, z; scores are z and -z, so that each image is asked to
    make one channel of one output large, or small.
    """

    network: fx.GraphModule
    input_range: InputRange
    targets: Int[Tensor, " n"]
    means: BatchMeans
    reference: tuple[tuple[Tensor, Tensor], ...] = ()  # mean, std (1, C) of each output; () = it is a classifier

    def __call__(self, view: Float[Tensor, "n c ..."], part: slice) -> tuple[Tensor, Tensor, Tensor]:
        scores = self.scores(in_range(view, self.input_range))
        wanted = self.means.mean(part, "class", F.cross_entropy(scores, self.targets[part]))
        return wanted + SMOOTHNESS * self.means.mean(part, "roughness", roughness(view)), wanted, scores

    def scores(self, x: Float[Tensor, "n c ..."]) -> Float[Tensor, "n k"]:
        """What targets count in."""
        outputs = _readable(self.network(x), len(x))
        if not self.reference:
            return _as_logits(outputs[0])
        z = [(y - mean) / std for y, (mean, std) in zip(outputs, self.reference, strict=True)]
        return torch.cat([part for y in z for part in (y, -y)], 1)


def _as_logits(answers: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Logarithms of what are probabilities already; logits as they are."""
    with torch.no_grad():
        sums = answers.sum(1)
        are_shares = bool((answers >= 0).all()) and bool(((sums - 1).abs() < 1e-3).all())
    return answers.clamp(min=1e-20).log() if are_shares else answers


def _readable(returned: Any, count: int) -> list[Float[Tensor, "n c"]]:
    """Float outputs with one entry an image, averaged over positions (N, C)."""
    flat, _ = tree_flatten(returned)
    tensors = [y for y in flat if isinstance(y, Tensor) and y.is_floating_point() and y.dim() and len(y) == count]
    return [_unsquashed(y).flatten(2).mean(2) if y.dim() > 2 else y.reshape(count, -1) for y in tensors]


def _unsquashed(scores: Tensor) -> Tensor:
    """Logits of what a sigmoid made; a map that is 0 nearly everywhere has no mean to speak of."""
    with torch.no_grad():
        are_shares = float(scores.min()) >= 0 and float(scores.max()) <= 1
    return torch.logit(scores, eps=1e-6) if are_shares else scores


def _reference(network: fx.GraphModule, x: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """Mean and standard deviation (1, C) of each output over a batch."""
    with torch.no_grad():
        outputs = _readable(network(x), len(x))
    spread = [y.std(0, correction=0, keepdim=True) for y in outputs]
    return tuple((y.mean(0, keepdim=True), s + 1e-3 * s.mean() + 1e-12) for y, s in zip(outputs, spread, strict=True))
