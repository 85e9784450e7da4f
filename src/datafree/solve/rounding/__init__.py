"""Rounding of one layer's weights: one file a method, one table of them."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from datafree.recipe import AdaRound, Gptq, Nearest, SQuant, StraightThrough
from datafree.records import QParams
from datafree.solve.jobs import LayerJob
from datafree.solve.rounding.adaround import adaround
from datafree.solve.rounding.gptq import gptq
from datafree.solve.rounding.nearest import nearest
from datafree.solve.rounding.squant import squant
from datafree.solve.rounding.straight_through import straight_through

SOLVERS: dict[type, Callable[[LayerJob, QParams], Float[Tensor, "g o n"]]] = {
    Nearest: nearest,
    Gptq: gptq,
    StraightThrough: straight_through,
    SQuant: squant,
    AdaRound: adaround,
}
"""Recipe class -> function(job, grid) -> integers (g, o, n) as floats."""

NEEDS = {
    Nearest: "diagonal",
    Gptq: "covariance",
    StraightThrough: "rows",
    SQuant: "diagonal",
    AdaRound: "covariance",
}
"""What each method needs to know of a layer's inputs."""
