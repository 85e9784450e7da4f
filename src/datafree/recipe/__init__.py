"""All configuration: what a recipe may say, and the presets."""

from datafree.recipe.parts import RecipeError
from datafree.recipe.rounding import AdaRound, Gptq, Nearest, RoundingRecipe, SQuant, StraightThrough
from datafree.recipe.schema import Activations, Distill, LayerRule, Prune, Recipe, Weights, presets
from datafree.recipe.signals import (
    Adversarial,
    Gaussian,
    Inverted,
    Loader,
    Matched,
    MatchedImages,
    Propagated,
    SignalRecipe,
)
from datafree.recipe.targets import TARGETS, USUAL, WEIGHT_RANGE, Target

__all__ = [
    "TARGETS",
    "USUAL",
    "WEIGHT_RANGE",
    "Activations",
    "AdaRound",
    "Adversarial",
    "Distill",
    "Gaussian",
    "Gptq",
    "Inverted",
    "LayerRule",
    "Loader",
    "Matched",
    "MatchedImages",
    "Nearest",
    "Propagated",
    "Prune",
    "Recipe",
    "RecipeError",
    "RoundingRecipe",
    "SQuant",
    "SignalRecipe",
    "StraightThrough",
    "Target",
    "Weights",
    "presets",
]
