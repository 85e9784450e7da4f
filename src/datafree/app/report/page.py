"""One HTML file: the template, its style, the charts and the library that draws them, all inside."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datafree.app.pareto import best
from datafree.app.report.facts import RunFacts
from datafree.app.tables import count, num_bytes, share
from datafree.execution import atomic_write
from datafree.extras import install

PARTS = Path(__file__).parent / "page"
NEEDED = ("altair", "vl_convert", "jinja2", "PIL")
LARGEST = 3_000_000  # bytes of a page
MOST_SHOWN = 6  # runs told layer by layer


class ReportError(ValueError):
    """A report that cannot be written."""


def check_extra() -> None:
    """Refuse before anything is done what the report's packages are missing for.

    Raises:
        ReportError: which are missing, and how to install them.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ReportError(f"a report needs {', '.join(missing)}; {install('report')}")


def write_page(runs: Sequence[RunFacts], path: Path) -> None:
    """Write one page of one run, or of several side by side.

    Raises:
        ReportError: it would be larger than 3 MB.
    """
    page = render(runs)
    if len(page.encode()) > LARGEST:
        raise ReportError(f"{path} would have {num_bytes(len(page.encode()))}, more than 3 MB; give fewer runs")
    with atomic_write(path) as place:
        place.write_text(page, encoding="utf-8")


def render(runs: Sequence[RunFacts]) -> str:
    """The page as text; names that come from models and files are escaped."""
    import jinja2

    from datafree.app.report import charts

    loader = jinja2.FileSystemLoader(PARTS)
    inside = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    inside.filters.update(bytes=num_bytes, count=count, figure=figure)
    return inside.get_template("page.html.j2").render(
        runs=runs, shown=runs[:MOST_SHOWN], charts=charts, library=library(), style=(PARTS / "style.css").read_text(),
        script=(PARTS / "page.js").read_text(), version=metadata.version("datafree"), share=share, **_marks(runs),
    )  # fmt: skip


def _marks(runs: Sequence[RunFacts]) -> dict[str, Any]:
    """Which runs are the best of a trade-off."""
    agreements = [run.agreement for run in runs]
    return {
        "smallest": best([run.summary.bytes for run in runs], agreements),
        "fastest": best([run.origin.milliseconds for run in runs], agreements),
        "timed": any(run.origin.milliseconds is not None for run in runs),
        "estimated": any(run.agreement is not None for run in runs),
    }


def figure(number: int | float | None, digits: int = 3) -> str:
    """A number as a table shows it; nothing where it is not known."""
    return "" if number is None else f"{number:.{digits}g}" if abs(number) < 1000 else f"{number:,.0f}"


@cache
def library() -> str:
    """Vega, Vega-Lite and vega-embed as one script."""
    import altair
    import vl_convert

    version = ".".join(altair.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version).replace(
        "</script", "<\\/script"
    )
