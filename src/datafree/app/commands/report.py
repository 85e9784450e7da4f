"""`datafree report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from datafree.app.arguments import Debug, Quiet, Threads, set_threads
from datafree.app.console import show


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Run directories, --out of compress.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What to write. Left out, for one run: DIR/report.html.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.")] = False,
    threads: Threads = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write what a run did as one HTML file, or several runs side by side; it needs no network."""
    from datafree.app.origin import read_origin
    from datafree.app.progress import job_progress
    from datafree.app.report import ReportError, check_report, labels_of, report_runs
    from datafree.app.tables import num_bytes
    from datafree.run import Run

    set_threads(threads)
    if out is None and len(runs) > 1:
        raise ReportError("several runs need a file to write: give --out report.html")
    file = out or runs[0] / "report.html"
    labels = labels_of([path.absolute().name for path in runs])
    loaded = [(Run.load(path), read_origin(path, label)) for path, label in zip(runs, labels, strict=True)]
    check_report(file, force=force)
    with job_progress() as progress:
        report_runs(loaded, file, progress.on_step)
    show(Text(f"{file}, {num_bytes(file.stat().st_size)}: open it in a browser"))
