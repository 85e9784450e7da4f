"""What `datafree demo` shows: EfficientNet-Lite0 on photographs, or four widths of a network of digits."""

from __future__ import annotations

from pathlib import Path

import torch

from datafree.app import tables
from datafree.app.console import show, show_json
from datafree.app.output import write_file
from datafree.app.photographs import SeenPhotograph, look
from datafree.app.progress import ESTIMATING, FILE_PASSES, job_progress
from datafree.app.watched import compress_watched
from datafree.demo import LITE0_MEAN, LITE0_SIDE, LITE0_STD, digits, digits_net, lite0, photographs
from datafree.models import Normalization, range_of
from datafree.recipe import Recipe
from datafree.run import EFFORTS, Run, evaluate_models

DIGITS_PRESETS = ("w8a8-tensor", "w8a8", "w4a8", "w4a4")
PLAIN_ROUNDING = {
    "equalize": "off",
    "solve": {"method": "nearest", "clip": False, "bias_correction": False, "mend": False},
}
PIXELS = Normalization(LITE0_MEAN, LITE0_STD, "published with it")


def compress_lite0(
    file: Path, recipe: Recipe, seed: int, *, force: bool
) -> tuple[dict[str, str], list[SeenPhotograph]]:
    """Compress, write and check the file, time it, look; what came of it."""
    photographs()  # not after the work, where their package is missing
    network, example = lite0(), torch.zeros(1, 3, LITE0_SIDE, LITE0_SIDE)
    with job_progress(after={ESTIMATING: EFFORTS["brief"].passes, **FILE_PASSES}) as progress:
        done = compress_watched(
            progress, network, recipe, example, seed=seed, effort="brief", on_range=range_of(PIXELS)
        )
        facts = write_file(done, file, done.summary.warnings, progress, force=force)
        return facts, look(network, file)


def compress_digits(seed: int, *, as_json: bool) -> None:
    """Four widths, each beside plain rounding, scored on held-out digits."""
    model, (images, labels) = digits_net(), digits("test")
    data = [(images, labels)]
    rows: list[tables.DemoRow] = []
    made: Run | None = None
    for preset in DIGITS_PRESETS:
        recipe = Recipe.preset(preset)
        plain = Recipe(**{**recipe.model_dump(), **PLAIN_ROUNDING, "signal": {"kind": "propagated"}})
        with job_progress(f"{preset}: ") as progress:
            ours = compress_watched(progress, model, recipe, images[:1], seed=seed, images=made)
        made = ours if ours.images else None
        with job_progress(f"{preset}, plain rounding: ") as progress:
            other = compress_watched(progress, model, plain, images[:1], seed=seed)
        of_ours, of_plain = (evaluate_models(r.student, model, data, layers=False) for r in (ours, other))
        rows.append((preset, ours, of_ours, of_plain))
    reference = evaluate_models(model, model, data, layers=False)
    if as_json:
        show_json({"float_top1": reference.top1, "presets": [tables.demo_record(*row) for row in rows]})
    else:
        show(tables.demo_table(reference, rows))
