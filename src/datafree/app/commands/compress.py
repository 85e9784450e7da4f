"""`datafree compress`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import fx

from datafree import run
from datafree.app import tables
from datafree.app.arguments import (
    EXPORTED,
    Debug,
    For,
    InputShape,
    Json,
    Mean,
    Model,
    Pretrained,
    Quiet,
    RecipeName,
    Seed,
    Settings,
    Std,
    Threads,
    Verbose,
    Weights,
    given_pixels,
    parse_numbers,
    parse_shape,
    read_recipe,
    set_threads,
    within_cpus,
)
from datafree.app.command_line import arguments_given
from datafree.app.console import show, show_json
from datafree.app.export_options import options_for
from datafree.app.given_images import images_given, range_given
from datafree.app.origin import write_command
from datafree.app.pixels import write_pixels
from datafree.app.progress import ESTIMATING, FILE_PASSES, TIMING, WRITING, job_progress
from datafree.app.sentences import losses
from datafree.app.unfinished import kept_until_done, work_folder
from datafree.app.verdict import time_beside_float, verdict
from datafree.app.watched import compress_watched
from datafree.export import exporter_for, exporters_by_suffix
from datafree.models import files_of, load_model, normalization, provenance
from datafree.progress import JobProgress
from datafree.recipe import Recipe
from datafree.run import EFFORTS, Run, RunError, graph_to_json


class EstimateEffort(str, Enum):
    """Those of `datafree.estimate`, and none."""

    brief, full, none = "brief", "full", "none"


FILES_OF_OTHERS = (".tflite", ".pt", ".pth", ".pt2", ".pte", ".ckpt", ".h5", ".keras", ".pb", ".ort", ".xml", ".engine",
                   ".mlmodel", ".mlpackage", ".npz", ".zip")  # fmt: skip


def compress(
    model: Model,
    out: Annotated[
        Path,
        typer.Option(metavar="FILE|DIR", help=f"What to write: {EXPORTED}; or a run directory, from which all follow."),
    ],
    recipe: RecipeName = "w4a8",
    settings: Settings = None,
    target: For = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    input_shape: InputShape = None,
    mean: Mean = None,
    std: Std = None,
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            callback=within_cpus,
            help="Processes that solve layers, at most the number of CPUs; any number gives the same bits.",
        ),
    ] = 1,
    threads: Threads = None,
    seed: Seed = 0,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Use these instead of making images: another run of the same network, a folder of .png or .jpg, .npy "
            "or .npz; repeatable.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where images are made.")] = "cpu",
    estimate: Annotated[
        EstimateEffort,
        typer.Option(help="Predict the agreement with the float network; full takes five times as long as brief."),
    ] = EstimateEffort.brief,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE, or the run that DIR holds.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew where the same command was stopped before its end.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Compress MODEL into a file that was checked and timed, or into a run directory.

    Until that is there, the work is kept beside it in a folder that ends in .part; after a stop the same command goes
    on from there.
    """
    set_threads(threads)
    settings = [*(settings or []), *([f"target={target}"] if target else [])]
    chosen = read_recipe(recipe, settings)
    is_file = out.suffix in exporters_by_suffix()
    check_out(out, Path(model), force=force, is_file=is_file)
    found: dict[str, str] = {}
    effort = None if estimate is EstimateEffort.none else estimate.value
    folder, after = work_folder(out, restart=restart), {ESTIMATING: EFFORTS[effort].passes} if effort else {}
    with kept_until_done(folder), job_progress(after={**after, **(FILE_PASSES if is_file else {})}) as progress:
        torch.manual_seed(seed)  # a model of random weights is the same one next time
        network, example = load_model(
            model, weights=weights, pretrained=pretrained, input_shape=parse_shape(input_shape)
        )
        used = given_pixels(parse_numbers(mean), parse_numbers(std))
        known = used and range_given(used, example if isinstance(example, torch.Tensor) else example[0])
        origin = provenance(model, weights, pretrained=pretrained)
        pixels = used or normalization(network)
        kept = images_given(images or [], network, example, pixels)
        if isinstance(kept, tuple):
            chosen = chosen.updated(["signal.kind=loader"])
        done = compress_watched(
            progress, network, chosen, example, seed=seed, workers=workers, images=kept, device=device,
            effort=effort, resume=folder, on_range=known, check=partial(_check_writes, out, chosen, model),
        )  # fmt: skip
        warnings = (*tables.about_weights(origin), *done.summary.warnings, *losses(done.summary))
        if is_file:
            found = _written(done, out, warnings, progress, force=force)
        else:
            done.save(out, force=force)
            write_pixels(out, pixels)
            write_command(out, arguments_given())
    if as_json:
        show_json({"model": origin, "out": str(out), **found, **tables.run_record(done, warnings)})
        return
    if found:
        show(tables.facts_table(f"{done.summary.model}, written to {out}", found))
    if verbose:
        show(tables.layers_table(done.layers))
    if verbose or not is_file:
        facts = {"model": origin, "recipe": " ".join([recipe, *settings]), **tables.run_facts(done)}
        show(tables.facts_table(f"{done.summary.model}, compressed into {out}", facts))
        show(*tables.notes(warnings, done.summary.skipped))


def check_out(out: Path, model: Path, *, force: bool, is_file: bool) -> None:
    """Refuse before the work what would be refused after it."""
    if is_file and out.exists():
        if any(file.exists() and out.samefile(file) for file in files_of(model)):
            raise RunError(f"{out} is the network that is compressed; choose another --out")
        if out.is_dir() or not force:
            raise RunError(f"{out} exists; choose another --out, or --force to replace a file")
    if not is_file:
        if out.suffix in FILES_OF_OTHERS:
            exporter_for(out)  # says which there are; a folder of that name would surprise
        run.check_free(out, force=force)
    place = next(p for p in (*([] if is_file else [out.absolute()]), *out.absolute().parents) if p.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise RunError(f"nothing can be written into {place}; choose another --out")


def _check_writes(out: Path, recipe: Recipe, model: str, teacher: fx.GraphModule) -> None:
    """Refuse before the work a network that could not be written after it."""
    if out.suffix in exporters_by_suffix():
        exporter_for(out).check(teacher, recipe, model if model.endswith(".onnx") else "")
    else:
        graph_to_json(teacher)


def _written(done: Run, file: Path, warnings: Sequence[str], progress: JobProgress, *, force: bool) -> dict[str, str]:
    """Write, check and time a file; what it is, in a few facts."""
    exporter, options = exporter_for(file), options_for(file, {})
    progress.on_step(WRITING, 0, 0)
    written = exporter.write(done, file, options, force=force)
    progress.on_step(TIMING, 0, 0)
    speed = time_beside_float(done, file, exporter, options, torch.get_num_threads())
    return verdict(done, file, written, speed, warnings)
