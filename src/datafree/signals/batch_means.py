"""Means over a batch that is seen part by part, so that memory is that of a part."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from datafree.signals.source import batch_statistics


@dataclass
class BatchMeans:
    """Means over a batch of `size` images, of which one part is seen at a time (ours).

    The other parts count as they were last seen, and only the part that is seen has a gradient: that of the mean over
    the whole batch, but for what has moved in the others since. A batch seen as a whole has its own means.
    """

    size: int
    seen: dict[str, dict[int, tuple[int, Tensor]]] = field(default_factory=dict)  # by key, then by first image

    def mean(self, part: slice, key: str, value: Tensor) -> Tensor:
        """The mean over the batch of what has the mean `value` over a part of it."""
        count = part.stop - part.start
        if count == self.size:
            return value
        parts = self.seen.setdefault(key, {})
        parts[part.start] = count, value.detach()
        others = sum((n * v for start, (n, v) in parts.items() if start != part.start), torch.zeros_like(value))
        return (count * value + others) / sum(n for n, _ in parts.values())

    def statistics(self, part: slice, key: str, x: Float[Tensor, "n c ..."]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (C,) of every channel over the batch, of which `x` belongs to a part."""
        if part.stop - part.start == self.size:
            return batch_statistics(x)
        mean, std = _PartStatistics.apply(x) if _has_channels_last(x) else batch_statistics(x)  # type: ignore[misc]
        wide = mean.double()
        first = self.mean(part, f"{key}.mean", wide)
        second = self.mean(part, f"{key}.square", std.double().square() + wide.square())
        return first.to(x.dtype), (second - first.square()).clamp(min=1e-12).sqrt().to(x.dtype)

    def state(self) -> dict[str, Tensor]:
        """What is remembered, for a checkpoint."""
        return {f"means.{key}": torch.stack([v for _, v in parts.values()]) for key, parts in self.seen.items()}

    def restore(self, tensors: dict[str, Tensor], parts: list[slice]) -> None:
        """Remember again what `state` returned."""
        for key, values in tensors.items():
            if key.startswith("means."):
                pairs = zip(parts, values, strict=True)
                self.seen[key.removeprefix("means.")] = {p.start: (p.stop - p.start, v) for p, v in pairs}


def _has_channels_last(x: Tensor) -> bool:
    """Whether (N, C, H, W) lies in memory as (N, H, W, C), and not as it is written, too."""
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


class _PartStatistics(torch.autograd.Function):
    """Of what lies with its channels last: five times faster than sums; deviations are right to a thousandth."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = torch.ops.aten.batch_norm_update_stats(x, None, None, 0.0)
        std = (var + 1e-12).sqrt()
        ctx.save_for_backward(x, mean, std)
        return mean, std

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, mean, std = ctx.saved_tensors
        slope, count = grads[1] / std, x.numel() // x.shape[1]  # d std / d x = (x - mean) / (count std)
        return torch.addcmul(
            ((grads[0] - slope * mean) / count).view(1, -1, 1, 1), x, (slope / count).view(1, -1, 1, 1)
        )
