"""Digests tell one student from another, and nothing from itself."""

from __future__ import annotations

import digests


def test_a_digest_comes_back_and_another_seed_has_another():
    first, again, other = (digests.digest("shared module", "w4a4", seed) for seed in (0, 0, 1))
    assert first == again
    assert all(first[kind] != other[kind] for kind in ("student", "onnx", "packed"))


def test_few_images_and_steps_whatever_the_recipe_has():
    for preset in digests.presets():
        chosen = digests.few(digests.Recipe.preset(preset))
        assert chosen.signal.images == 4 and getattr(chosen.signal, "steps", 2) == 2
        assert getattr(chosen.solve, "steps", 2) == 2


def test_what_differs_is_told(capsys):
    before = {"demo / w8a8": {"student": "a", "onnx": "b"}, "demo / w4a8": {"student": "c"}}
    now = {"demo / w8a8": {"student": "a", "onnx": "x"}}
    assert digests.compare(before, before) == 0 and digests.compare(before, now) == 1
    assert capsys.readouterr().out.splitlines()[1:] == ["demo / w8a8: onnx b -> x", "1 compared, 1 differ"]


def test_nothing_to_compare_is_no_success(capsys):
    assert digests.compare({}, {"demo / w8a8": {"student": "a"}}) == 1
