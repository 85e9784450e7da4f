"""`datafree demo`."""

from __future__ import annotations

from datafree.app import tables
from datafree.app.arguments import Debug, Seed, Threads, set_threads
from datafree.app.console import show
from datafree.app.progress import JobProgress
from datafree.app.watched import compress_watched
from datafree.recipe import Recipe
from datafree.run import evaluate_models

DEMO_PRESETS = ("w8a8-tensor", "w8a8", "w4a8", "w4a4")
PLAIN_ROUNDING = {
    "equalize": "off",
    "solve": {"method": "nearest", "clip": False, "bias_correction": False, "mend": False},
}


def demo(seed: Seed = 0, threads: Threads = 1, debug: Debug = False) -> None:
    """Compress a small digits network; write nothing.

    Four widths, each beside plain rounding, scored on held-out digits.
    """
    from datafree.demo import digits, digits_net

    set_threads(threads)
    model, (images, labels) = digits_net(), digits("test")
    data = [(images, labels)]
    rows, made = [], None
    for preset in DEMO_PRESETS:
        recipe = Recipe.preset(preset)
        plain = Recipe(**{**recipe.model_dump(), **PLAIN_ROUNDING, "signal": {"kind": "propagated"}})
        with JobProgress(f"{preset}: ") as progress:
            ours = compress_watched(progress, model, recipe, images[:1], seed=seed, images=made)
        made = ours if ours.images else None
        with JobProgress(f"{preset}, plain rounding: ") as progress:
            other = compress_watched(progress, model, plain, images[:1], seed=seed)
        scores = (evaluate_models(r.student, model, data, layers=False) for r in (ours, other))
        rows.append((preset, ours, *scores))
    show(tables.demo_table(evaluate_models(model, model, data, layers=False), rows))
