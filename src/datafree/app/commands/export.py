"""`datafree export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from datafree.app import tables
from datafree.app.arguments import EXPORTED, Debug, Json, Quiet, Threads, set_threads
from datafree.app.console import show, show_json
from datafree.app.export_options import options_for
from datafree.export import exporter_for
from datafree.run import Run


def export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory, --out of compress.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help=f"{EXPORTED}.")],
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.")] = False,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also list every node that is no integer kernel where it runs.")
    ] = False,
    debug: Debug = False,
    **given: Any,
) -> None:
    """Write the student as one file, run what was written, and say how near it is."""
    set_threads(threads)
    done = Run.load(directory)
    written = exporter_for(file).write(done, file, options_for(file, given), force=force)
    if as_json:
        sizes = {"bytes": file.stat().st_size, "float_bytes": done.summary.float_bytes}
        show_json({"run": str(directory), "file": str(file), **sizes, **asdict(written)})
        return
    facts = tables.file_facts(done, file, written)
    title = f"{done.summary.model} of {directory}, written to {file}"
    if verbose:
        show(*map(Text, written.details))
    show(tables.facts_table(title, facts), *tables.notes(written.notes, ()))
