"""From runs to a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from datafree.app.origin import Origin, read_origin
from datafree.app.report.facts import facts_of
from datafree.app.report.page import ReportError, check_extra, write_page
from datafree.run import Run

Step = Callable[[str, int, int], None]


def write_report(runs: Run | str | Path | Sequence[Run | str | Path], path: str | Path, *, force: bool = False) -> Path:
    """Write one HTML file about a run, or about several side by side; it needs no network and no other file.

    Args:
        runs: of `compress`, or run directories; those in memory are told by the name of their model.
        path: of the file.
        force: whether a file there is replaced.

    Returns:
        The path.

    Raises:
        ReportError: `path` is taken; packages are missing, says which.
        RunError: not a run directory, or damaged.
    """
    given = [runs] if isinstance(runs, Run | str | Path) else list(runs)
    check_report(Path(path), force=force)
    labels = labels_of([_named(run) for run in given])
    loaded = [(_loaded(run), _origin(run, label)) for run, label in zip(given, labels, strict=True)]
    report_runs(loaded, Path(path))
    return Path(path)


def check_report(path: Path, *, force: bool) -> None:
    """Refuse before the work what would be refused after it.

    Raises:
        ReportError: there is something already, or packages are missing.
    """
    check_extra()
    if path.is_dir() or (path.exists() and not force):
        raise ReportError(f"{path} exists; choose another --out, or --force to replace a file")


def report_runs(runs: Sequence[tuple[Run, Origin]], path: Path, on_step: Step = lambda what, done, total: None) -> None:
    """Look at each run, those of one network on the same images, and write the page."""
    if not runs:
        raise ReportError("there is no run to report on; give at least one")
    found, images = [], {run.summary.fingerprint: run.images for run, _ in reversed(runs) if run.images}
    for number, (run, origin) in enumerate(runs):
        on_step(f"looking at {origin.label}", number, len(runs))
        found.append(facts_of(run, origin, images.get(run.summary.fingerprint, ())))
    on_step("writing the page", 0, 0)
    write_page(found, path)


def labels_of(names: Sequence[str]) -> list[str]:
    """The same names, numbered where one comes twice."""
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]


def _named(run: Run | str | Path) -> str:
    return run.summary.model if isinstance(run, Run) else Path(run).absolute().name


def _loaded(run: Run | str | Path) -> Run:
    return run if isinstance(run, Run) else Run.load(run)


def _origin(run: Run | str | Path, label: str) -> Origin:
    return Origin(label) if isinstance(run, Run) else read_origin(Path(run), label)
