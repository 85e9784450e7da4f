"""All that a page says of one run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import Tensor

from datafree.app import tables
from datafree.app.origin import Origin
from datafree.app.report.activations import Histogram, histograms
from datafree.app.report.layers import LayerRow, layer_rows
from datafree.app.report.pictures import picture_of
from datafree.app.report.ranges import RangeRow, range_rows
from datafree.app.report.signal_again import signal_again
from datafree.app.sentences import losses
from datafree.app.verdict import advice
from datafree.records import Summary
from datafree.run import Run


@dataclass(frozen=True)
class RunFacts:
    """One run, as a page shows it.

    tiles: (name, value, what it is) of the verdict. facts: name -> text. acted: guards that acted, in sentences.
    left: (reason, names) of what stayed as it was. looked_at: what layers were measured on. picture: a data: address.
    """

    origin: Origin
    summary: Summary
    tiles: list[tuple[str, str, str]]
    advice: str
    facts: dict[str, str]
    recipe: str
    layers: list[LayerRow]
    histograms: list[Histogram]
    ranges: list[RangeRow]
    looked_at: str
    picture: str
    num_pictured: int
    warnings: list[str]
    acted: list[str]
    left: list[tuple[str, list[str]]]

    @property
    def agreement(self) -> float | None:
        return self.summary.estimate and self.summary.estimate.agreement

    @property
    def worst(self) -> LayerRow | None:
        """The layer that makes most noise at the network's output."""
        known = [row for row in self.layers if row.noise is not None]
        return max(known, key=lambda row: row.noise or 0.0, default=None)


def facts_of(run: Run, origin: Origin, shared: tuple[Tensor, ...] = ()) -> RunFacts:
    """Look at a run, on images of another one perhaps: a few forward passes for each layer."""
    signal, looked_at = signal_again(run, shared)
    picture, num_pictured = picture_of(run)
    summary = run.summary
    return RunFacts(
        origin=origin,
        summary=summary,
        tiles=_tiles(summary, origin),
        advice=advice(run, summary.bytes, summary.float_bytes, None, summary.warnings),
        facts={name: text for name, text in tables.run_facts(run).items() if name != "agreement"},
        recipe=run.recipe.dump(),
        layers=layer_rows(run, signal),
        histograms=histograms(run, signal),
        ranges=range_rows(run),
        looked_at=looked_at,
        picture=picture,
        num_pictured=num_pictured,
        warnings=list(summary.warnings),
        acted=_acted(run),
        left=_left(summary),
    )


def _tiles(s: Summary, origin: Origin) -> list[tuple[str, str, str]]:
    """What decides whether the run is of use."""
    found = [
        ("size", tables.num_bytes(s.bytes), f"{tables.share(s.bytes, s.float_bytes)} of {_size(s.float_bytes)}"),
        ("multiply-adds", tables.count(s.macs), f"{tables.share(s.macs, s.float_macs)} of float, one image"),
    ]
    if s.estimate:
        e = s.estimate
        interval = f"{e.low:.0f} to {e.high:.0f} %; no data read"
        found.append(("predicted agreement", f"{e.agreement:.0f} %", interval))
    for name, text in (origin.evaluation or {}).items():
        if name in ("top-1, student", "lost"):
            found.append((f"measured: {name}", text, (origin.evaluation or {}).get("images", "")))
    if origin.milliseconds is not None:
        found.append(("speed here", f"{origin.speed or 0:.2f} x", f"{origin.milliseconds:.2f} ms an image"))
    return found


def _size(number: int) -> str:
    return f"{tables.num_bytes(number)} in float32"


def _acted(run: Run) -> list[str]:
    """Layers that were not left as asked for, steps left out, what did nothing."""
    s = run.summary
    dropped = Counter(step for layer in run.layers for step in layer.dropped)
    steps = [
        f"{step}: left out of {n} of {len(run.layers)} layers, where it would not have lowered the predicted error"
        for step, n in dropped.items()
    ]
    undone = s.equalization.dropped
    if undone:
        steps.append(f"equalization: left out behind {len(undone)} layers, where it was predicted to gain nothing")
    return [*losses(s), *steps, *(f"gone, for it did nothing: {line}" for line in s.slimmed.removed)]


def _left(s: Summary) -> list[tuple[str, list[str]]]:
    reasons: dict[str, list[str]] = {}
    for item in s.skipped:
        reasons.setdefault(item.reason, []).append(item.name)
    return list(reasons.items())
