"""What a signal is made from, as a value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from datafree.execution import ON_CPU, Execution
from datafree.recipe import SignalRecipe
from datafree.records import InputRange, Stats
from datafree.signals.scale import in_range


@dataclass(frozen=True)
class Competitor:
    """A student whose answers the images shall not share (Deep Inversion's adaptive form)."""

    logits: Callable[[Tensor], Tensor]  # differentiable
    weight: float


@dataclass(frozen=True)
class SignalJob:
    """All that is needed to make one signal.

    teacher: folded, equalized.
    stats: BatchNorm statistics by node name.
    recipe: the recipe's part.
    unit: what to begin with, for each input of the network, of zero mean and unit deviation.
    ranges: mean and deviation that bring each of them to the network's scale.
    given: inputs made before, or real ones, as the network sees them; None = there are none.
    rng: of everything random.
    """

    teacher: fx.GraphModule
    stats: Stats
    recipe: SignalRecipe
    seed: int
    rng: torch.Generator
    unit: tuple[Tensor, ...]
    ranges: tuple[InputRange, ...]
    given: tuple[Tensor, ...] | None = None
    competitor: Competitor | None = None
    work: Execution = ON_CPU

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Those given, or the first ones, as the network sees them."""
        return self.given or tuple(in_range(x, r) for x, r in zip(self.unit, self.ranges, strict=True))

    @property
    def has_no_memory(self) -> bool:
        """Whether images are to be made for a network of which no BatchNorm is known."""
        return self.given is None and not self.stats

    @property
    def hindrance(self) -> str:
        """Why there is nothing to move, or nothing to move it to; "" = there is no hindrance."""
        if self.given is not None:
            return "they were given"
        if not self.stats:
            return "there is no BatchNorm"
        if len(self.unit) != 1:
            return f"the network has {len(self.unit)} inputs"
        return "" if self.unit[0].dim() > 2 else "the network's input is no image"
