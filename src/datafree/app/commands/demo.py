"""`datafree demo`."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer

from datafree.app import tables
from datafree.app.arguments import Debug, Json, Quiet, RecipeName, Seed, Threads, read_recipe, set_threads
from datafree.app.console import show, show_json
from datafree.app.output import check_out, write_file
from datafree.app.photographs import SeenPhotograph, look
from datafree.app.progress import ESTIMATING, FILE_PASSES, job_progress
from datafree.app.watched import compress_watched
from datafree.demo import LITE0_MEAN, LITE0_SIDE, LITE0_STD, DemoError, digits, digits_net, lite0, photographs
from datafree.export import EXPORTERS
from datafree.models import Normalization, range_of
from datafree.recipe import Recipe
from datafree.run import EFFORTS, Run, evaluate_models

DIGITS_PRESETS = ("w8a8-tensor", "w8a8", "w4a8", "w4a4")
PLAIN_ROUNDING = {
    "equalize": "off",
    "solve": {"method": "nearest", "clip": False, "bias_correction": False, "mend": False},
}
PIXELS = Normalization(LITE0_MEAN, LITE0_STD, "published with it")
KEEP = "Keep the file: datafree demo --out lite0.onnx"
NEXT = "A network of yours: datafree compress net.onnx --recipe w8a8 --out small.onnx"


class Shown(str, Enum):
    """What the demo compresses: a network of ImageNet, or one of handwritten digits."""

    PHOTOGRAPHS = "photographs"
    DIGITS = "digits"


def demo(
    shown: Annotated[
        Shown, typer.Argument(metavar="WHAT", help="EfficientNet-Lite0, or a small network of digits.")
    ] = Shown.PHOTOGRAPHS,
    recipe: RecipeName = "w8a8",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.onnx", help="Keep the file here; else it is removed at the end.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.onnx.")] = False,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compress EfficientNet-Lite0 without data, and look at photographs.

    It becomes an ONNX file that is checked, timed beside the float network, and shown a dozen photographs. With
    --recipe w4a8 images are made first: some twenty minutes. `datafree demo digits` writes nothing: four widths of a
    small network, each beside plain rounding, scored on held-out digits.
    """
    is_small = shown is Shown.DIGITS
    set_threads(1 if is_small and threads is None else threads)
    if is_small:
        if out is not None or recipe != "w8a8":
            raise DemoError("the digits are shown at four recipes and written nowhere; leave --recipe and --out out")
        _digits(seed, as_json=as_json)
        return
    with ExitStack() as stack:
        file = out or Path(stack.enter_context(tempfile.TemporaryDirectory())) / f"lite0-{recipe}.onnx"
        if file.suffix != EXPORTERS["ONNX"].suffix:
            raise DemoError(f"the demo writes an .onnx file, not {file}; choose another --out")
        check_out(file, Path(), force=force, is_file=True)
        facts, seen = _photographs(file, read_recipe(recipe, []), seed, force=force)
    if as_json:
        show_json({"recipe": recipe, **facts, "photographs": [asdict(item) for item in seen]})
        return
    title = f"EfficientNet-Lite0 at {recipe}, compressed without data{f' into {out}' if out else ''}"
    show(tables.photographs_table(seen), tables.facts_table(title, facts), *([] if out else [KEEP]), NEXT)


def _photographs(file: Path, recipe: Recipe, seed: int, *, force: bool) -> tuple[dict[str, str], list[SeenPhotograph]]:
    """Compress, write and check the file, time it, look; what came of it."""
    photographs()  # not after the work, where their package is missing
    network, example = lite0(), torch.zeros(1, 3, LITE0_SIDE, LITE0_SIDE)
    with job_progress(after={ESTIMATING: EFFORTS["brief"].passes, **FILE_PASSES}) as progress:
        done = compress_watched(
            progress, network, recipe, example, seed=seed, effort="brief", on_range=range_of(PIXELS)
        )
        facts = write_file(done, file, done.summary.warnings, progress, force=force)
        return facts, look(network, file)


def _digits(seed: int, *, as_json: bool) -> None:
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
