"""`datafree demo`."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from datafree.app.arguments import Debug, Json, Quiet, RecipeName, Seed, Threads, read_recipe, set_threads
from datafree.app.console import show, show_json

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
    from datafree.app import tables
    from datafree.app.demonstration import compress_digits, compress_lite0
    from datafree.app.output import check_out
    from datafree.demo import DemoError
    from datafree.export import EXPORTERS

    is_small = shown is Shown.DIGITS
    set_threads(1 if is_small and threads is None else threads)
    if is_small:
        if out is not None or recipe != "w8a8":
            raise DemoError("the digits are shown at four recipes and written nowhere; leave --recipe and --out out")
        compress_digits(seed, as_json=as_json)
        return
    with ExitStack() as stack:
        file = out or Path(stack.enter_context(tempfile.TemporaryDirectory())) / f"lite0-{recipe}.onnx"
        if file.suffix != EXPORTERS["ONNX"].suffix:
            raise DemoError(f"the demo writes an .onnx file, not {file}; choose another --out")
        check_out(file, Path(), force=force, is_file=True)
        facts, seen = compress_lite0(file, read_recipe(recipe, []), seed, force=force)
    if as_json:
        show_json({"recipe": recipe, **facts, "photographs": [asdict(item) for item in seen]})
        return
    title = f"EfficientNet-Lite0 at {recipe}, compressed without data{f' into {out}' if out else ''}"
    show(tables.photographs_table(seen), tables.facts_table(title, facts), *([] if out else [KEEP]), NEXT)
