"""One layer's problem as a value that goes anywhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from datafree.recipe import RoundingRecipe
from datafree.records import Moments, WeightSpec


class LayerError(ValueError):
    """A layer that cannot be solved; names the layer, the method and the shapes."""


@dataclass(frozen=True)
class LayerJob:
    """All that is needed to solve one layer, anywhere: picklable, pure, with its own seed."""

    name: str
    weight: Float[Tensor, "g o n"]
    bias: Float[Tensor, " c"]
    moments: Moments
    spec: WeightSpec
    method: RoundingRecipe
    seed: int
    rows: Float[Tensor, "r g n"] | None = None  # inputs drawn ahead, for solvers that train; or
    draws: Callable[[int, torch.Generator], Float[Tensor, "r g n"]] | None = None  # how to draw others at every step
    moment_halves: tuple[Moments, Moments] | None = None  # of the first and the second half of the images
    input_scale: float | None = None  # of one integer step of the input; None = float input
    input_db: float = math.inf  # what rounding the input leaves of each output channel
    kernel_size: int = 1  # taps of one input channel, kh * kw
    keep: Bool[Tensor, "g o n"] | None = None  # False where a weight is zero and stays zero
    target: Float[Tensor, "g o n"] | None = None  # weights whose output is wanted; None = `weight`

    def blocks(self) -> list[LayerJob]:
        """Jobs whose costs add up to this one's, one for each diagonal block of H, on the same rows' grid."""
        parts = self.moments.blocks()
        if len(parts) == 1:
            return [self]
        size = parts[0].mean.shape[1]
        keeps = [None] * len(parts) if self.keep is None else self.keep.split(size, 2)
        return [
            replace(self, weight=w, moments=moments, keep=keep)
            for w, moments, keep in zip(self.weight.split(size, 2), parts, keeps, strict=True)
        ]
