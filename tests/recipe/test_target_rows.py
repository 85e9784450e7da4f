"""Targets: a row for every name a recipe may say, and what a runtime refuses."""

from typing import get_args

import pytest

from datafree.recipe import TARGETS, USUAL, Recipe, RecipeError, Target


def test_every_row_can_be_asked_for_and_nothing_else():
    assert set(get_args(Recipe.model_fields["target"].annotation)) == set(TARGETS)
    assert [Recipe(target=name).runtime for name in TARGETS] == [*TARGETS.values()]


def test_the_usual_target_needs_not_be_said():
    assert Recipe().target == USUAL and Recipe().runtime is TARGETS[USUAL]
    assert Recipe.parse("target: arm").dump().count("target: arm") == 1


def test_a_zero_point_is_left_out_only_of_signed_grids():
    assert all(row.signed or row.zero_points for row in TARGETS.values())
    assert Target() == TARGETS["generic"]


@pytest.mark.parametrize(
    "settings, message",
    [
        (["target=coreml"], "target: Input should be 'onnxruntime', .*'generic', got 'coreml'"),
        (
            ["target=tensorrt", "activations.bits=4"],
            "target 'tensorrt' takes activations of 8 bits, and activations.bits is 4; set that to 8, or choose",
        ),
        (
            ["target=arm", "layers.stem.activations.bits=6"],
            "target 'arm' takes activations of 8 bits, and layers.stem.activations.bits is 6; set that to 8",
        ),
    ],
)
def test_what_a_runtime_refuses_is_said(settings, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.preset("w8a8").updated(settings)


def test_float_activations_and_kept_layers_are_taken():
    assert Recipe(target="arm", activations={"bits": None}, layers={"stem": "keep"}).runtime.signed
