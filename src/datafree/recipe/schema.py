"""Everything a user can choose, as frozen records read from YAML. Nothing else in the package holds configuration."""

from __future__ import annotations

import re
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    SerializeAsAny,
    Tag,
    ValidationError,
    model_serializer,
    model_validator,
)  # fmt: skip

from datafree.messages import brief
from datafree.recipe.old_names import new_method, with_new_names
from datafree.recipe.parts import Bits, Part, RecipeError
from datafree.recipe.rounding import Gptq, RoundingRecipe
from datafree.recipe.signals import Propagated, SignalRecipe
from datafree.recipe.targets import TARGETS, USUAL, Target
from datafree.recipe.yaml_text import MOST_CHARACTERS, read_yaml


class Weights(Part):
    """Width and granularity of the weights; 8 bits are always symmetric."""

    bits: Bits | None = 8
    per: Literal["tensor", "channel"] = "channel"
    symmetric: bool = False


class Activations(Part):
    """Width of every layer's input, one scale per tensor."""

    bits: Bits | None = 8
    per: Literal["tensor"] = "tensor"


class Prune(Part):
    """Which share of the weights becomes zero, and by what measure; null = none."""

    sparsity: float = Field(default=0.5, ge=0, lt=1)
    pattern: Annotated[
        str, BeforeValidator(lambda v: f"{v // 60}:{v % 60}" if type(v) is int else v)  # YAML 1.1: 2:4 is 124
    ] = Field(default="unstructured", pattern=r"^(unstructured|channels|[1-9]\d*:[1-9]\d*)$")
    scope: Literal["global", "layer"] = "global"
    score: Literal["output", "magnitude"] = "output"
    steps: int = Field(default=16, ge=1)
    probes: bool = False  # as many procedural images join those that are made: more rows for H

    @model_validator(mode="after")
    def _pattern_says_how_many(self) -> Prune:
        if self.cell is not None:
            n, m = self.cell
            if n >= m:
                raise ValueError(f"pattern {self.pattern!r} keeps {n} of {m}; write n:m with n < m, as 2:4")
            if "sparsity" in self.model_fields_set and abs(self.sparsity - (1 - n / m)) > 1e-9:
                raise ValueError(
                    f"pattern {self.pattern!r} is a sparsity of {1 - n / m:g}, not {self.sparsity:g}; leave one out"
                )
            object.__setattr__(self, "sparsity", 1 - n / m)
        return self

    @model_serializer(mode="wrap")
    def _without_what_the_pattern_says(self, fields: Any) -> dict[str, Any]:
        return {k: v for k, v in fields(self).items() if k != "sparsity" or self.cell is None}

    @property
    def cell(self) -> tuple[int, int] | None:
        """n and m of an n:m pattern."""
        n, colon, m = self.pattern.partition(":")
        return (int(n), int(m)) if colon else None


class Budget(Part):
    """What the student may cost: one of these; bits and zeros of every layer follow from it."""

    bytes: int | None = Field(default=None, gt=0)
    mean_bits: float | None = Field(default=None, ge=2, le=8)
    mean_activation_bits: float | None = Field(default=None, ge=4, le=8)
    bit_operations: int | None = Field(default=None, gt=0)
    macs: int | None = Field(default=None, gt=0)
    sparsity: float | None = Field(default=None, ge=0, lt=1)

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Budget:
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError(f"a budget is one of {', '.join(type(self).model_fields)}; give exactly one")
        return self

    def __str__(self) -> str:
        [(name, value)] = self.model_dump(exclude_none=True).items()
        return f"{name} {value:.12g}"


class Distill(Part):
    """Training of the whole student against the teacher, after all layers are solved; null = none."""

    images: Literal["inverted", "adversarial", "matched", "loader"] = "inverted"
    steps: int = Field(default=200, ge=1)
    lr: float = Field(default=1e-3, gt=0)  # a step of Adam, as a share of a layer's largest weight
    loss: Literal["mse", "kl"] = "mse"  # of the logits, of the classes' probabilities
    batch: int = Field(default=64, ge=2)
    compete: float = Field(default=0.0, ge=0)  # Deep Inversion's: weight of images on which the student errs
    guard: bool = True  # keep what is best on images held out and on procedural ones; false: the last step (published)

    @model_validator(mode="after")
    def _only_moved_images_compete(self) -> Distill:
        if self.compete and self.images not in ("inverted", "matched"):
            raise ValueError(f"images {self.images!r} are not moved to where the student errs; leave compete out")
        return self


class LayerPrune(Part):
    """The share of one pattern's layers, where it is not the recipe's."""

    sparsity: float = Field(default=0.5, ge=0, lt=1)


class LayerRule(Part):
    """What differs for the layers of one pattern; fields left out keep the recipe's value."""

    weights: Weights = Weights()
    activations: Activations = Activations()
    prune: LayerPrune = LayerPrune()

    @model_serializer
    def given(self) -> dict[str, dict[str, Any]]:
        """Only the fields that were given."""
        parts = {name: getattr(self, name).model_dump(exclude_unset=True) for name in type(self).model_fields}
        return {name: fields for name, fields in parts.items() if fields}


_Rule = Annotated[
    Annotated[LayerRule, Tag("rule")] | Annotated[Literal["keep"], Tag("word")],
    Discriminator(lambda value: "word" if isinstance(value, str) else "rule"),
]


class Recipe(Part):
    """What to do with a network: signal, equalization, bits, solver, exceptions by layer.

    Example:
        >>> Recipe.preset("w4a8").weights.bits
        4
        >>> Recipe(weights={"bits": 3}).activations.bits
        8
    """

    signal: Annotated[SerializeAsAny[SignalRecipe], BeforeValidator(SignalRecipe.chosen)] = Propagated()
    equalize: Annotated[
        Literal["free", "foldable", "between", "rows", "depthwise", "off"],
        BeforeValidator(lambda v: "off" if v is False else v),  # YAML 1.1: off
    ] = "foldable"
    slim: Annotated[
        Literal["auto", "on", "off"],
        BeforeValidator(lambda v: {True: "on", False: "off"}.get(v, v) if isinstance(v, bool) else v),  # YAML 1.1
    ] = "auto"  # leaves out channels that do nothing; auto: where a tenth of the parameters goes
    weights: Weights = Weights()
    activations: Activations = Activations()
    prune: Prune | None = None
    solve: Annotated[SerializeAsAny[RoundingRecipe], BeforeValidator(RoundingRecipe.chosen)] = Gptq()
    distill: Distill | None = None
    budget: Budget | None = None
    first_last: Literal[8, "same"] = 8  # bits of the first and the last layer at least, or the same as the others'
    target: Literal["onnxruntime", "openvino", "tensorrt", "arm", "generic"] = USUAL  # the runtime it is made for
    layers: dict[str, _Rule] = Field(default_factory=dict)  # shell wildcards, last match wins

    def __init__(self, /, **fields: Any) -> None:
        try:
            super().__init__(**with_new_names(fields))
        except ValidationError as error:
            raise RecipeError(_explain(error)) from None

    @model_validator(mode="after")
    def _target_has_these_widths(self) -> Recipe:
        known = self.runtime.activation_bits
        rules = {f"layers.{name}.": rule for name, rule in self.layers.items() if isinstance(rule, LayerRule)}
        given = {"": self.activations, **{path: rule.activations for path, rule in rules.items()}}
        wrong = next((p for p, part in given.items() if part.bits is not None and part.bits not in known), None)
        if wrong is not None:
            raise ValueError(
                f"target {self.target!r} takes activations of {', '.join(map(str, known))} bits, and "
                f"{wrong}activations.bits is {given[wrong].bits}; set that to {known[-1]}, or choose another target"
            )
        return self

    @property
    def runtime(self) -> Target:
        """What the runtime can do that the student is made for."""
        return TARGETS[self.target]

    @classmethod
    def preset(cls, name: str) -> Recipe:
        """Read one of the recipes shipped in the package.

        Raises:
            RecipeError: no such preset; lists those there are.
        """
        if name not in presets():
            near = get_close_matches(name, presets(), n=1)
            meant = f"did you mean {near[0]}? Presets" if near else "presets"
            raise RecipeError(f"there is no preset {name!r}; {meant} are {', '.join(presets())}; or give a .yaml file")
        return cls.parse((resources.files("datafree") / "recipe" / "presets" / f"{name}.yaml").read_text(), source=name)

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe from a YAML file; RecipeError names the file and the key that is wrong."""
        try:
            with Path(path).open() as file:
                text = file.read(MOST_CHARACTERS + 1)  # whatever its size
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not a text file"
            raise RecipeError(f"cannot read the recipe {path}: {reason}; give a .yaml file or a preset") from None
        return cls.parse(text, source=str(path))

    @classmethod
    def parse(cls, text: str, *, source: str = "recipe") -> Recipe:
        """Read a recipe from YAML text."""
        fields = read_yaml(text, source=source) or {}
        if not isinstance(fields, dict):
            raise RecipeError(
                f"{source} holds a {type(fields).__name__}; a recipe is a mapping such as 'weights: {{bits: 4}}'"
            )
        return cls(**{str(key): value for key, value in fields.items()})

    def updated(self, assignments: list[str]) -> Recipe:
        """The recipe with "dotted.key=value" settings applied; values are YAML.

        Example:
            >>> Recipe.preset("w4a8").updated(["weights.bits=3"]).weights.bits
            3
        """
        fields = self.model_dump(mode="json")
        settings = [_setting(text) for text in assignments]
        settings = [(path, new_method(value) if path == ["solve", "method"] else value) for path, value in settings]
        for path, value in settings:  # another method or kind has other fields; those set beside it are kept
            if path in (["solve", "method"], ["signal", "kind"]) and value != fields[path[0]].get(path[1]):
                common = (RoundingRecipe if path[0] == "solve" else SignalRecipe).model_fields
                fields[path[0]] = {k: v for k, v in fields[path[0]].items() if k in common}
        for path, value in settings:
            place = fields
            for parent in path[:-1]:
                if place.get(parent) is None:
                    place[parent] = {}
                place = place[parent]
                if not isinstance(place, dict):
                    raise RecipeError(f"{'.'.join(path)}: {parent} is a value, not a section of the recipe")
            place[path[-1]] = value
        return Recipe(**fields)

    def dump(self) -> str:
        """The resolved recipe as YAML text that `Recipe.parse` reads back to an equal recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def _setting(text: str) -> tuple[list[str], Any]:
    """The path and value of "dotted.key=value"; a layer's own dots belong to its name."""
    key, equals, value = text.partition("=")
    if not equals:
        raise RecipeError(f"setting {text!r} has no '='; write it as weights.bits=3")
    path = key.split(".")
    if path[0] == "layers" and len(path) > 1:
        stop = max((i for i, part in enumerate(path) if part in LayerRule.model_fields), default=len(path))
        path = ["layers", ".".join(path[1:stop]), *path[stop:]]
    return path, read_yaml(value, source=f"{key}: {brief(value)}")


def presets() -> list[str]:
    """Names of the recipes shipped in the package: quantization, pruning, the paper's; from little to much."""
    names = [p.name.removesuffix(".yaml") for p in (resources.files("datafree") / "recipe" / "presets").iterdir()]
    return sorted(names, key=_order)


def _order(preset: str) -> tuple:
    numbers = [int(d) for d in re.findall(r"\d+", preset)]
    quantizes = re.match(r"(paper-)?w\d", preset) is not None
    what = "" if quantizes else re.split(r"\d", preset)[0]
    return preset.startswith("paper"), what, [-n for n in numbers] if quantizes else numbers, preset


def _explain(error: ValidationError) -> str:
    """One line: path, what is wrong, what is allowed."""
    lines = []
    for item in error.errors():
        path = _user_path(item["loc"])
        if item["type"] == "union_tag_invalid":
            context = item.get("ctx", {})
            tag, allowed = context["discriminator"].strip("'"), context["expected_tags"]
            lines.append(f"{'.'.join([*path, tag])}: allowed are {allowed}, got {brief(context['tag'])}")
        elif item["type"] == "extra_forbidden":
            lines.append(f"{'.'.join(path)}: unknown key; {_allowed(item['loc'])}")
        elif item["type"] == "string_pattern_mismatch":
            lines.append(
                f"{'.'.join(path)}: allowed are unstructured, channels, and n:m as 2:4, got {brief(item['input'])}"
            )
        elif item["type"] == "value_error":
            where = f"{'.'.join(path)}: " if path else ""  # a fact of the whole recipe has no path
            lines.append(where + item["msg"].removeprefix("Value error, "))
        else:
            lines.append(f"{'.'.join(path)}: {item['msg']}, got {brief(item['input'])}")
    return "recipe: " + "; ".join(lines)


def _user_path(loc: tuple[int | str, ...]) -> list[str]:
    """The path as written in the recipe, without the names of the alternatives pydantic tried."""
    path = [str(p) for p in loc]
    if not path:
        return path
    tag = {"solve": 1, "signal": 1, "layers": 2}.get(path[0], len(path))
    return path[:tag] + path[tag + 1 :]


def _allowed(loc: tuple[int | str, ...]) -> str:
    prune = LayerPrune if loc[0] == "layers" else Prune
    parts = {
        "weights": Weights,
        "activations": Activations,
        "prune": prune,
        "distill": Distill,
        "budget": Budget,
        "layers": LayerRule,
    }
    parts |= {**SignalRecipe.kinds, **RoundingRecipe.kinds}
    owner = next((parts[str(p)] for p in reversed(loc[:-1]) if str(p) in parts), Recipe)
    return f"allowed here are {', '.join(owner.model_fields)}"
