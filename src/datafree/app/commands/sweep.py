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
    Model,
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
    model: Model,
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
    """Compress MODEL by several recipes, and set bytes and speed against what is lost.

    Images are made once for all recipes that ask for the same. After a stop the same command goes on: what is finished
    in DIR is kept.
    """
    import torch

    from datafree.app import tables
    from datafree.app.opened import open_network
    from datafree.app.progress import job_progress
    from datafree.app.sweep import Network, compress_all, open_folder, read_recipes, timed
    from datafree.app.watched import pool_of

    set_threads(threads)
    chosen_pool = pool_of(pool, workers, address)
    chosen = read_recipes(recipes, settings or [])
    torch.manual_seed(seed)  # a model of random weights is the same one next time
    with job_progress():
        opened = open_network(
            model, weights=weights, pretrained=pretrained, input_shape=input_shape, mean=mean, std=std
        )
    open_folder(out, chosen, f"{opened.origin}, {input_shape}, {mean}, {std}", seed)
    named = {"--weights": weights, "--input": input_shape, "--mean": mean, "--std": std, "--seed": seed}
    flags = [part for flag, value in named.items() if value is not None for part in (flag, str(value))]
    flags += [*(["--pretrained"] if pretrained else []), *(part for s in settings or [] for part in ("--set", s))]
    job = Network(opened.network, opened.example, (model, *flags), opened.known, seed, chosen_pool)
    runs = compress_all(job, chosen, out)
    origins, notes = timed(runs, out, torch.get_num_threads())
    if as_json:
        show_json(tables.sweep_rows(runs, origins))
    else:
        show(tables.sweep_table(runs, origins), *tables.notes(notes, ()))
    told = _write_page(runs, origins, out / PAGE)
    if not as_json:
        show(Text(told))


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
