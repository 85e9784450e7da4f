"""Recipes: `Recipe.load` of YAML."""

from __future__ import annotations

from pathlib import Path

from fuzz import faults
from fuzz.harness import Target, fuzz, instrumented

with instrumented("yaml"):
    from datafree.recipe import Recipe, RecipeError, presets

LAUGHS = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
HARM = (
    f"a0: &a0 [lol]\n{LAUGHS}weights: {{bits: *a11}}\n",
    "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 30)),
    "layers: " + "[" * 2000,
    "layers: " + "{a: " * 400 + "1" + "}" * 400,
    "weights: &w {bits: *w}\n",
    "!!python/object/apply:os.system ['true']\n",
    "prune: {pattern: 2:4}\nlayers: {'*': {weights: {bits: 3}}, conv: keep}\n",
    "signal: {kind: inverted, steps: 10, images: .inf}\ndistill: {lr: .nan}\n",
    "budget: {bytes: 1e400}\nx: !!timestamp 1\ny: !!bool z\nz: 2001-99-99\n",
    "weights: {bits: " + "9" * 5000 + "}\n",
    "solve: {method: adaround, steps: 0x10}\n? [a, b]\n: c\n",
    "weights: {bits: !!int ''}\n",
)


def seeds() -> list[bytes]:
    return [Recipe.preset(name).dump().encode() for name in presets()] + [text.encode() for text in HARM]


def read(data: bytes, folder: Path) -> object:
    path = folder / "recipe.yaml"
    path.write_bytes(data)
    recipe = Recipe.load(path)
    assert Recipe.parse(recipe.dump()) == recipe, "what is written is read"
    return recipe


TARGET = Target("recipes", seeds, read, (RecipeError,), faults.of_text)

if __name__ == "__main__":
    fuzz(TARGET)
