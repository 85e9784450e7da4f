"""The rounding methods a recipe may ask for, and what each may be told."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from datafree.recipe.parts import Choice


class RoundingRecipe(Choice):
    """What every rounding method is asked. A subclass is one more; its row is in `datafree.solve.ROUNDING`."""

    kinds: ClassVar[dict[str, type[Choice]]] = {}
    tag, usual = "method", "gptq"
    sequential: bool = False  # layers in order, each on the inputs its student sees; else each by itself (the paper)
    compensation: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] = "auto"  # share of the error upstream
    mend: bool = True  # solve a layer that lost channels again, in ways that cost more; false: as published methods
    method: Any  # of every subclass a Literal, with its name as the default


class Nearest(RoundingRecipe):
    """Round to nearest, then correct the bias."""

    method: Literal["nearest"] = "nearest"
    bias_correction: bool = True
    clip: bool = True  # False: min-max ranges


class Gptq(RoundingRecipe):
    """GPTQ: optimal-brain rounding with error feedback through the Cholesky factor of H."""

    method: Literal["gptq"] = "gptq"
    damping: float = Field(default=0.01, gt=0)
    polish: int = Field(default=1, ge=0)  # passes of coordinate descent after rounding


class StraightThrough(RoundingRecipe):
    """The paper's layer-wise training: straight-through rounding, Adam, fresh draws."""

    method: Literal["straight_through"] = "straight_through"
    steps: int = Field(default=300, ge=1)
    rows: int = Field(default=256, ge=1)  # layer-input rows drawn for one step
    lr: float = Field(default=1e-3, gt=0)


class SQuant(RoundingRecipe):
    """Round to nearest, then flip single weights until errors cancel within kernels and channels."""

    method: Literal["squant"] = "squant"


class AdaRound(RoundingRecipe):
    """Rounding up or down learned by Adam on the layer's quadratic form."""

    method: Literal["adaround"] = "adaround"
    steps: int = Field(default=500, ge=1)
    lr: float = Field(default=0.1, gt=0)
    regularizer: float = Field(default=3.0, ge=0)
