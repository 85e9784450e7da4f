"""`datafree compress`."""

from __future__ import annotations

from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from datafree.app.arguments import (
    EXPORTED,
    Address,
    Debug,
    For,
    InputShape,
    Json,
    Mean,
    Memory,
    Model,
    PoolKind,
    PoolName,
    Pretrained,
    Quiet,
    RecipeName,
    Seed,
    Settings,
    Std,
    Threads,
    Verbose,
    Weights,
    Workers,
    parse_bytes,
    read_recipe,
    set_threads,
)
from datafree.app.command_line import arguments_given
from datafree.app.console import show, show_json


class EstimateEffort(str, Enum):
    """Those of `datafree.estimate`, and none."""

    brief, full, none = "brief", "full", "none"


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
    workers: Workers = None,
    pool: PoolName = PoolKind.processes,
    address: Address = None,
    threads: Threads = None,
    memory: Memory = None,
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
    import torch

    from datafree.app import tables
    from datafree.app.given_images import images_given
    from datafree.app.opened import open_network
    from datafree.app.origin import write_command
    from datafree.app.output import check_out, check_writes, write_file
    from datafree.app.pixels import write_pixels
    from datafree.app.progress import ESTIMATING, FILE_PASSES, job_progress
    from datafree.app.sentences import losses
    from datafree.app.unfinished import unfinished_work
    from datafree.app.watched import compress_watched, pool_of
    from datafree.export import exporters_by_suffix
    from datafree.run import EFFORTS

    set_threads(threads)
    chosen_pool = pool_of(pool, workers, address)
    settings = [*(settings or []), *([f"target={target}"] if target else [])]
    chosen = read_recipe(recipe, settings)
    most = parse_bytes(memory)
    is_file = out.suffix in exporters_by_suffix()
    check_out(out, Path(model), force=force, is_file=is_file)
    found: dict[str, str] = {}
    effort = None if estimate is EstimateEffort.none else estimate.value
    after = {**({ESTIMATING: EFFORTS[effort].passes} if effort else {}), **(FILE_PASSES if is_file else {})}
    with unfinished_work(out, restart=restart) as folder, job_progress(after=after) as progress:
        torch.manual_seed(seed)  # a model of random weights is the same one next time
        opened = open_network(
            model, weights=weights, pretrained=pretrained, input_shape=input_shape, mean=mean, std=std
        )
        kept = images_given(images or [], opened.network, opened.example, opened.pixels)
        if isinstance(kept, tuple):
            chosen = chosen.updated(["signal.kind=loader"])
        done = compress_watched(
            progress, opened.network, chosen, opened.example, seed=seed, pool=chosen_pool, images=kept, device=device,
            effort=effort, memory=most, resume=folder, on_range=opened.known,
            check=partial(check_writes, out, chosen, model),
        )  # fmt: skip
        warnings = (*tables.about_weights(opened.origin), *done.summary.warnings, *losses(done.summary))
        if is_file:
            found = write_file(done, out, warnings, progress, force=force)
        else:
            done.save(out, force=force)
            write_pixels(out, opened.pixels)
            write_command(out, arguments_given())
    if as_json:
        show_json({"model": opened.origin, "out": str(out), **found, **tables.run_record(done, warnings)})
        return
    if found:
        show(tables.facts_table(f"{done.summary.model}, written to {out}", found))
    if verbose:
        show(tables.layers_table(done.layers))
    if verbose or not is_file:
        facts = {"model": opened.origin, "recipe": " ".join([recipe, *settings]), **tables.run_facts(done)}
        show(tables.facts_table(f"{done.summary.model}, compressed into {out}", facts))
        show(*tables.notes(warnings, done.summary.skipped))
