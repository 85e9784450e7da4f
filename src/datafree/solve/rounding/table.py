"""All rounding methods: the recipe's class, and what others must know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from datafree.recipe import AdaRound, Gptq, Nearest, RecipeError, RoundingRecipe, SQuant, StraightThrough
from datafree.records import QParams
from datafree.solve.jobs import LayerJob
from datafree.solve.rounding.adaround import adaround
from datafree.solve.rounding.gptq import gptq, polished
from datafree.solve.rounding.nearest import nearest
from datafree.solve.rounding.squant import squant
from datafree.solve.rounding.straight_through import straight_through, trained


def _always(recipe: RoundingRecipe) -> bool:
    return True


@dataclass(frozen=True)
class RoundingMethod:
    """One way to round a layer's weights.

    round: function(job, grid) -> integers (g, o, n) as floats.
    moments: what it needs to know of the layer's inputs: their variances ("diagonal"), or H ("covariance").
    num_rows: function(recipe) -> how many layer inputs it trains on; None = moments are enough.
    tries_grids: whether it is solved on several grids, of which the best for the output is taken; costs as many times.
    finish: function(integers, job, grid) -> integers, once the grid is chosen.
    refit_damping: function(recipe) -> damping of H in least squares of the weights that stay, while others become zero;
        None = they stay as they are.
    train_float: function(job) -> weights (g, o, n) that stay, trained where they stay in float; None = they are not.
    clips, corrects_bias: function(recipe) -> whether large weights may be clipped, whether the output keeps its mean.
    """

    round: Callable[[LayerJob, QParams], Tensor]
    moments: Literal["diagonal", "covariance"] = "diagonal"
    num_rows: Callable[[Any], int] | None = None
    tries_grids: bool = False
    finish: Callable[[Tensor, LayerJob, QParams], Tensor] | None = None
    refit_damping: Callable[[Any], float] | None = None
    train_float: Callable[[LayerJob], Tensor] | None = None
    clips: Callable[[Any], bool] = _always
    corrects_bias: Callable[[Any], bool] = _always

    def __post_init__(self) -> None:
        if self.refit_damping and self.moments != "covariance":
            raise ValueError("refit_damping is of least squares, which need H; say moments='covariance' beside it")


ROUNDING: dict[type[RoundingRecipe], RoundingMethod] = {
    Nearest: RoundingMethod(nearest, clips=lambda r: r.clip, corrects_bias=lambda r: r.bias_correction),
    Gptq: RoundingMethod(
        gptq, moments="covariance", tries_grids=True, finish=polished, refit_damping=lambda r: r.damping
    ),
    StraightThrough: RoundingMethod(straight_through, num_rows=lambda r: r.steps * r.rows, train_float=trained),
    SQuant: RoundingMethod(squant),
    AdaRound: RoundingMethod(adaround, moments="covariance"),
}


def rounding_method(recipe: RoundingRecipe) -> RoundingMethod:
    """The row of a recipe's method.

    Raises:
        RecipeError: it has none.
    """
    if type(recipe) not in ROUNDING:
        name = type(recipe).__name__
        raise RecipeError(f"solve.method {recipe.method!r} has no row; add ROUNDING[{name}] = RoundingMethod(...)")
    return ROUNDING[type(recipe)]
