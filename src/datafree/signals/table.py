"""All kinds of signal: the recipe's class, and what others must know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from datafree.recipe import (
    Adversarial,
    Gaussian,
    Inverted,
    Loader,
    Matched,
    MatchedImages,
    Propagated,
    RecipeError,
    SignalRecipe,
)
from datafree.signals import answers
from datafree.signals.adversarial import generated_images
from datafree.signals.gaussian_signal import gaussian_signal, noise
from datafree.signals.job import SignalJob
from datafree.signals.loader import given_images
from datafree.signals.matching import matched_images, steps_of
from datafree.signals.procedural import procedural_images
from datafree.signals.propagated import probe_images, propagated
from datafree.signals.source import Signal


@dataclass(frozen=True)
class SignalKind:
    """How one kind of signal is made.

    start: function(shape (N, ...), recipe, generator) -> inputs of zero mean and unit deviation, which the network's
        input range is found with; None = the user gives the images.
    make: function(job) -> the signal, from the inputs that `start` gave.
    keeps_images: making them takes long: fewer are made, and the run keeps them for other recipes.
    passes: function(recipe, teacher, number of images, whether BatchNorm remembers) -> forward passes of one image
        that making them takes; a backward pass counts as two.
    """

    start: Callable[[tuple[int, ...], Any, torch.Generator], Tensor] | None = probe_images
    make: Callable[[SignalJob], Signal] = propagated
    keeps_images: bool = False
    passes: Callable[[Any, fx.GraphModule, int, bool], int] = lambda recipe, teacher, count, remembers: 0


def _passes(recipe: SignalRecipe, teacher: fx.GraphModule, count: int, remembers: bool) -> int:
    """Of images that are moved: towards what BatchNorm remembers, or towards answers where nothing does."""
    if not remembers:
        return 2 * answers.STEPS * count // answers.MOVED
    return 2 * steps_of(recipe, teacher) * count if isinstance(recipe, MatchedImages) else 0


SIGNALS: dict[type[SignalRecipe], SignalKind] = {
    Gaussian: SignalKind(start=noise, make=gaussian_signal),
    Propagated: SignalKind(make=procedural_images, passes=_passes),
    Inverted: SignalKind(make=matched_images, keeps_images=True, passes=_passes),
    Matched: SignalKind(make=matched_images, keeps_images=True, passes=_passes),
    Adversarial: SignalKind(
        make=generated_images,
        keeps_images=True,
        passes=lambda recipe, teacher, count, remembers: 4 * recipe.steps * recipe.batch,
    ),
    Loader: SignalKind(start=None, make=given_images),
}


def signal_kind(recipe: SignalRecipe) -> SignalKind:
    """The row of a recipe's signal.

    Raises:
        RecipeError: it has none.
    """
    if type(recipe) not in SIGNALS:
        name = type(recipe).__name__
        raise RecipeError(f"signal.kind {recipe.kind!r} has no row; add SIGNALS[{name}] = SignalKind(...)")
    return SIGNALS[type(recipe)]
