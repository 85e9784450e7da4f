"""`datafree sweep`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from datafree.app.arguments import (
    Address,
    Debug,
    InputShape,
    Json,
    Mean,
    Models,
    PoolKind,
    PoolName,
    Pretrained,
    Quiet,
    Seed,
    Settings,
    Std,
    Threads,
    Weights,
    Workers,
    set_threads,
)
from datafree.app.console import show, show_json

if TYPE_CHECKING:
    from datafree.app.origin import Origin
    from datafree.run import Run

PAGE = "sweep.html"


def sweep(
    models: Models,
    recipes: Annotated[
        str, typer.Option(metavar="NAME,NAME...", help="Presets or .yaml files, with commas between them.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="A folder: a run for each recipe, its file, sweep.html.")],
    settings: Settings = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    input_shape: InputShape = None,
    mean: Mean = None,
    std: Std = None,
    workers: Workers = None,
    pool: PoolName = PoolKind.processes,
    address: Address = None,
    threads: Threads = None,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compress each MODEL by several recipes, and set bytes and speed against what is lost.

    Images are made once for all recipes that ask for the same. With several workers, recipes go side by side. After a
    stop the same command goes on: what is finished in DIR is kept.
    """
    import torch

    from datafree.app import tables
    from datafree.app.opened import open_network
    from datafree.app.progress import job_progress
    from datafree.app.sweep import check_folder, folders, mark_folder, read_recipes, timed
    from datafree.app.sweep_runs import Network, Sweep, compress_all
    from datafree.app.watched import pool_of
    from datafree.run import RunError

    if weights and len(models) > 1:
        raise RunError(f"--weights {weights} can be those of one model alone; sweep it by itself")
    set_threads(threads)
    chosen_pool = pool_of(pool, workers, address)
    chosen = read_recipes(recipes, settings or [])
    named = {"--weights": weights, "--input": input_shape, "--mean": mean, "--std": std, "--seed": seed}
    flags = [part for flag, value in named.items() if value is not None for part in (flag, str(value))]
    flags += [*(["--pretrained"] if pretrained else []), *(part for s in settings or [] for part in ("--set", s))]
    sweeps, marks = [], {}
    for model, folder in folders(models, out).items():
        torch.manual_seed(seed)  # a model of random weights is the same one next time
        with job_progress():
            opened = open_network(
                model, weights=weights, pretrained=pretrained, input_shape=input_shape, mean=mean, std=std
            )
        marks[folder] = check_folder(folder, chosen, f"{opened.origin}, {input_shape}, {mean}, {std}", seed)
        network = Network(model, opened.network, opened.example, (model, *flags), opened.known, seed)
        sweeps.append(Sweep(network, chosen, folder))
    for folder, text in marks.items():
        mark_folder(folder, text)
    rows = []
    for job, runs in zip(sweeps, compress_all(sweeps, chosen_pool), strict=True):
        origins, notes = timed(runs, job.out, torch.get_num_threads())
        rows += [{"model": job.network.name, **row} for row in tables.sweep_rows(runs, origins)]
        if not as_json:
            heading = [Text(job.network.name, "bold")] if len(sweeps) > 1 else []
            show(*heading, tables.sweep_table(runs, origins), *tables.notes(notes, ()))
        told = _write_page(runs, origins, job.out / PAGE)
        if not as_json:
            show(Text(told))
    if as_json:
        show_json(rows)


def _write_page(runs: dict[str, Run], origins: dict[str, Origin], file: Path) -> str:
    """The report of all runs; what to say of it."""
    from datafree.app.origin import read_origin
    from datafree.app.progress import job_progress
    from datafree.app.report import ReportError, check_extra, report_runs

    try:
        check_extra()
    except ReportError as error:
        return f"{file} was not written: {error}"
    told = {name: read_origin(file.parent / name, name) for name in runs}
    times = {n: {"milliseconds": origins[n].milliseconds, "speed": origins[n].speed} for n in runs}
    with job_progress() as progress:
        report_runs([(run, replace(told[n], **times[n])) for n, run in runs.items()], file, progress.on_step)
    return f"{file}: open it in a browser"
