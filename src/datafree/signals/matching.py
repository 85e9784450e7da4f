"""Images that make the network remember: probes moved until BatchNorm outputs have the statistics it keeps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx

from datafree import graph as g
from datafree.recipe import Inverted, Moved
from datafree.records import ChannelStats, InputRange, Stats
from datafree.signals.source import batch_statistics

LEARNING_RATE = 0.1  # of unit-variance images, Adam
BATCH = 64  # images moved together; their joint statistics are what is matched
PIXEL_REACH = 2.2  # largest unit-variance pixel: 8-bit pixels end about two standard deviations from their mean (ours)


class MatchingError(ValueError):
    """The loss is no longer a number."""


def match(
    teacher: fx.GraphModule,
    stats: Stats,
    unit: Float[Tensor, "n c h w"],
    method: Moved,
    *,
    input_range: InputRange,
    generator: torch.Generator,
    device: str = "cpu",
) -> Float[Tensor, "n c h w"]:
    """Move images by Adam until the outputs of BatchNorm have the mean and standard deviation it remembers.

    Minimise, over images x seen through a random shift and flip at every step,

        sum over BatchNorms of mean_c [(m_c - mean_c)^2 + (d_c - std_c)^2] / std_c^2  +  a CE(logits, class)  +  b TV(x)

    with m, d the batch's mean and standard deviation. The first term is DeepInversion's (arXiv 1912.08795, eq. 4),
    normalised per channel (ours); random classes are asked for by `inverted` alone; the start from dead leaves and
    the step counts are ours. Pixels stay within what 8-bit images reach.

    Args:
        unit: starting images, zero mean and unit variance; the network sees `unit * std + mean` of `input_range`.
        device: where the steps are taken, "cpu" or "cuda"; the images come back to the CPU.

    Raises:
        MatchingError: the loss is not finite; names the step. The device is not there.
    """
    if device != "cpu":
        teacher, stats = _on_device(teacher, stats, device)
    parts = [
        _match_batch(teacher, stats, part.to(device), method, input_range=input_range, generator=generator)
        for part in unit.split(BATCH)
    ]
    return torch.cat(parts).cpu()


def _on_device(teacher: fx.GraphModule, stats: Stats, device: str) -> tuple[fx.GraphModule, Stats]:
    try:
        moved = g.duplicate(teacher).to(device)
        return moved, {n: ChannelStats(s.mean.to(device), s.std.to(device)) for n, s in stats.items()}
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise MatchingError(
            f"device {device!r} cannot be used: {reason}; use 'cpu', or 'cuda' where there is a GPU"
        ) from None


def _match_batch(
    teacher: fx.GraphModule,
    stats: Stats,
    unit: Tensor,
    method: Moved,
    *,
    input_range: InputRange,
    generator: torch.Generator,
) -> Tensor:
    targets = _targets(teacher, len(unit), generator) if isinstance(method, Inverted) else None
    targets = None if targets is None else targets.to(unit.device)
    images = unit.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([images], lr=LEARNING_RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, method.steps)
    reach = max(1, min(unit.shape[2:]) // 12)
    for step in range(method.steps):
        shift = torch.randint(-reach, reach + 1, (2,), generator=generator).tolist()
        with torch.enable_grad():
            view = torch.roll(images, shift, (2, 3))
            view = view.flip(3) if step % 2 else view
            mismatch, logits = _mismatch(teacher, stats, in_range(view, input_range))
            loss = mismatch + method.smoothness * _total_variation(view)
            if targets is not None and logits is not None:
                loss = loss + method.class_weight * F.cross_entropy(logits, targets)
            optimizer.zero_grad()
            loss.backward()
        if not bool(torch.isfinite(loss)):
            raise MatchingError(
                f"making images: the loss is {float(loss.detach())} at step {step}; use signal.kind propagated"
            )
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            images.clamp_(-PIXEL_REACH, PIXEL_REACH)
    return images.detach()


def in_range(x: Float[Tensor, "n c ..."], chosen: InputRange) -> Float[Tensor, "n c ..."]:
    """Unit-variance images in the range the network expects."""
    view = (1, -1, *[1] * (x.dim() - 2))
    mean, std = (torch.tensor(v, device=x.device).expand(x.shape[1]).view(view) for v in (chosen.mean, chosen.std))
    return x * std + mean


def _mismatch(teacher: fx.GraphModule, stats: Stats, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Distance of all BatchNorm outputs from what BatchNorm remembers, and the logits where there are any."""
    total, value = x.new_zeros(()), None
    for node, values in g.walk(teacher, (x,)):
        if node not in values:
            value = values[node] = g.execute(node, values)
        if node.name in stats:
            total = total + _distance(*batch_statistics(values[node]), stats[node.name])
    logits = value if isinstance(value, Tensor) and value.dim() == 2 else None
    return total, logits


def _distance(mean: Tensor, std: Tensor, wanted: ChannelStats) -> Tensor:
    floor = 1e-2 * wanted.std.square().mean()
    return (((mean - wanted.mean) ** 2 + (std - wanted.std) ** 2) / (wanted.std.square() + floor)).mean()


def _total_variation(x: Float[Tensor, "n c h w"]) -> Tensor:
    """Mean square difference of neighbouring pixels, unit-variance images."""
    return (x[:, :, 1:] - x[:, :, :-1]).square().mean() + (x[:, :, :, 1:] - x[:, :, :, :-1]).square().mean()


def _targets(teacher: fx.GraphModule, count: int, generator: torch.Generator) -> Tensor | None:
    """A random class for every image, where the network returns logits (N, classes)."""
    returned = g.outputs(teacher)
    if len(returned) != 1 or len(g.shape(returned[0])) != 2:
        return None
    return torch.randint(g.shape(returned[0])[1], (count,), generator=generator)
