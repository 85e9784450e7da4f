"""`datafree evaluate`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from datafree.app.arguments import Debug, Json, Mean, Quiet, Std, Threads, given_pixels, parse_numbers, set_threads
from datafree.app.console import show, show_json

if TYPE_CHECKING:
    from datafree.run import Run


def evaluate(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory, --out of compress.")],
    data: Annotated[
        Path, typer.Option(metavar="PATH", help="A folder of CLASS/*.png or *.jpg, or an .npz with x and y.")
    ],
    mean: Mean = None,
    std: Std = None,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure what was lost, on labelled images."""
    from datafree import run
    from datafree.app import tables
    from datafree.app.origin import write_evaluation
    from datafree.app.pixels import read_pixels
    from datafree.app.progress import job_progress
    from datafree.images import BATCH_SIZE, load_images

    set_threads(threads)
    done = run.Run.load(directory)
    channels, *size = _image_shape(done)
    used = given_pixels(parse_numbers(mean), parse_numbers(std)) or read_pixels(directory, channels)
    mean_std = {"mean": used.mean, "std": used.std} if used else {}
    images = load_images(data, size=(size[0], size[1]), channels=channels, **mean_std)
    with job_progress() as progress:
        num_batches = -(-images.num_images // BATCH_SIZE)
        found = run.evaluate(done, progress.track(images, "evaluating", num_batches))
    facts = {"images": str(data), "pixels": tables.pixels_text(used), **tables.evaluation_facts(found)}
    write_evaluation(directory, found, facts)
    if as_json:
        lost = {"lost": found.lost, "lost_error": found.lost_error}
        show_json({"run": str(directory), "images": str(data), **asdict(found), **lost})
        return
    show(tables.facts_table(f"{done.summary.model} of {directory}, on {found.num_images} images", facts))


def _image_shape(done: Run) -> tuple[int, ...]:
    from datafree import graph as g
    from datafree.run import RunError

    shapes = [g.shape(node)[1:] for node in g.placeholders(done.teacher)]
    if len(shapes) != 1 or len(shapes[0]) != 3:
        found = " and ".join(str(shape) for shape in shapes)
        raise RunError(f"images are (C, H, W), this network takes {found}; use datafree.evaluate() from Python")
    return shapes[0]
