"""`datafree bench`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from datafree.app.arguments import EXPORTED, Debug, InputShape, Json, Quiet, parse_shape, within_cpus
from datafree.app.console import show, show_json


def bench(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help=f"Of `datafree export`: {EXPORTED}.")],
    threads: Annotated[int, typer.Option(min=1, metavar="N", callback=within_cpus, help="Of each runtime.")] = 1,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Images in a run.")] = 1,
    turns: Annotated[int, typer.Option(min=1, metavar="N", help="Rounds in which every file runs.")] = 20,
    input_shape: InputShape = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Time files side by side; the first is what the others are compared with."""
    from datafree.app import tables
    from datafree.app.latency import bench as timed
    from datafree.app.progress import job_progress

    with job_progress() as progress:
        progress.on_step("taking turns", 0, 0)
        size = (parse_shape(input_shape) or (1,))[1:]
        found = timed(files, threads=threads, batch=batch, turns=turns, size=size)
    if as_json:
        show_json([asdict(item) for item in found])
    else:
        show(tables.latency_table(found))
