"""The kinds of signal a recipe may ask for, and what each may be told."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from datafree.recipe.parts import Bits, Choice


class SignalRecipe(Choice):
    """What every kind of signal is asked. A subclass is one more kind; its row is in `datafree.signals.SIGNALS`."""

    kinds: ClassVar[dict[str, type[Choice]]] = {}
    tag, usual = "kind", "propagated"
    probes: Literal["leaves", "pink"] = "leaves"
    images: int | None = Field(default=None, ge=1)  # None: 64, and more where they are small
    kind: Any  # of every subclass a Literal, with its name as the default


class Gaussian(SignalRecipe):
    """Independent Gaussians at BatchNorm outputs (the paper's)."""

    kind: Literal["gaussian"] = "gaussian"
    pooling: Literal["ignored", "executed"] = "ignored"  # ignored, as in the paper: statistics pass over it unchanged


class Propagated(SignalRecipe):
    """Procedural images once through the teacher, re-standardised at every BatchNorm."""

    kind: Literal["propagated"] = "propagated"


class Matched(SignalRecipe):
    """The same after a few dozen steps on the images that match BatchNorm outputs to their statistics."""

    kind: Literal["matched"] = "matched"
    steps: int = Field(default=40, ge=1)
    smoothness: float = Field(default=1.0, ge=0)


class Inverted(SignalRecipe):
    """`matched` with class targets, for the steps of the setting and the effort."""

    kind: Literal["inverted"] = "inverted"
    setting: Literal["short", "cifar10", "imagenet"] = "short"  # others: Deep Inversion as published, its own numbers
    effort: Literal["fast", "normal", "best"] = "normal"  # of the setting "short"
    steps: int | None = Field(default=None, ge=1)  # None: of effort and network; of published settings 2000 and 20000
    smoothness: float = Field(default=1.0, ge=0)
    class_weight: float = Field(default=0.3, ge=0)


class Adversarial(SignalRecipe):
    """Images of a generator trained on what BatchNorm remembers, against a rounded network."""

    kind: Literal["adversarial"] = "adversarial"
    steps: int = Field(default=1000, ge=1)
    warmup: int = Field(default=200, ge=0)  # steps before the student counts
    batch: int = Field(default=64, ge=2)
    lr: float = Field(default=1e-3, gt=0)
    statistics: float = Field(default=1.0, ge=0)
    rivalry: float = Field(default=1.0, ge=0)
    rival_bits: Bits = 4  # of the student it is trained against, where there is none yet


MatchedImages = Matched | Inverted
"""Signals whose images are moved until the network remembers them."""


class Loader(SignalRecipe):
    """Real images, when there are some after all."""

    kind: Literal["loader"] = "loader"
    restandardise: bool = False  # bring them to what BatchNorm remembers, as made ones are
