"""The charts of a page, as Vega-Lite specifications; their colours are the page's, light or dark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from datafree.app.pareto import best
from datafree.app.report.activations import Histogram
from datafree.app.report.facts import RunFacts
from datafree.app.report.layers import LayerRow
from datafree.app.report.ranges import RangeRow
from datafree.records import ChannelRanges

FIRST, SECOND, MARKED = "var(--first)", "var(--second)", "var(--marked)"
SERIES = [f"var(--series-{i})" for i in range(1, 7)]
BEST = ["the best of its kind", "another is better"]
NOTHING = 1e-4  # of a layer's largest range: what a dead channel is drawn as
METRICS = {
    "noise": "noise at the output, %",
    "weights_db": "SQNR of its weights, dB",
    "running_db": "SQNR, all running, dB",
    "bits": "bits of its weights",
    "zeros": "zeros, %",
    "bytes": "bytes",
    "macs": "multiply-adds",
}
Spec = dict[str, Any]


def layers_chart(rows: Sequence[LayerRow]) -> Spec:
    """A bar a layer, in the order they run in; what it shows is chosen."""
    values = [{name: getattr(row, name) for name in ("name", "input_bits", *METRICS)} for row in rows]
    chosen = alt.binding_select(options=list(METRICS), labels=list(METRICS.values()), name="show ")
    shown = alt.param("shown", value="noise", bind=chosen)
    tooltip = [alt.Tooltip("name:N", title="layer"), *(_tip(name, title) for name, title in METRICS.items())]
    bars = (
        alt.Chart(alt.Data(values=values))
        .transform_calculate(value="datum[shown]")
        .mark_bar(color=FIRST, cornerRadiusEnd=2)
        .encode(
            x=alt.X("value:Q", title=None, axis=alt.Axis(tickCount=6, format="~s")), y=_layers_axis(), tooltip=tooltip
        )
        .add_params(shown)
    )
    return _spec(bars, height=_height(len(rows)))


def ranges_chart(rows: Sequence[RangeRow]) -> Spec:
    """From the smallest to the largest range among a layer's channels, before and after."""
    values = [
        value
        for row in rows
        for when, found in (("before", row.before), ("after", row.after))
        if found is not None and found.largest > 0
        for value in [_range_value(found, when)]
    ]
    base = alt.Chart(alt.Data(values=values)).encode(
        y=_layers_axis(),
        yOffset=alt.YOffset("when:N", sort=["before", "after"]),
        color=_colour("when:N", ["before", "after"], [SECOND, FIRST]),
        tooltip=["name:N", "when:N", *(alt.Tooltip(f"{n}:Q", format=".3g") for n in ("smallest", "median", "largest"))],
    )
    few = alt.Axis(tickCount=5, format="~g")
    axis = alt.X("low:Q", scale=alt.Scale(type="log"), title="largest absolute weight of a channel", axis=few)
    bars = base.mark_bar(size=4, opacity=0.75).encode(x=axis, x2="largest:Q")
    ticks = base.mark_tick(size=9, thickness=2).encode(x=alt.X("middle:Q"))
    return _spec(alt.layer(bars, ticks), height=_height(len(rows)))


def _range_value(found: ChannelRanges, when: str) -> Spec:
    """A logarithm has no place for zeros."""
    least = NOTHING * found.largest
    drawn = {"low": max(least, found.smallest), "middle": max(least, found.median)}
    return {"when": when, **vars(found), **drawn}


def activations_chart(found: Sequence[Histogram]) -> Spec:
    """What the layer chosen reads, and where its integers end."""
    values = [{"name": h.name, "low": h.edges[:-1], "high": h.edges[1:], "count": h.counts} for h in found]
    ends = [{"name": h.name, "end": end, "what": what} for h in found
            for end, what in ((h.low, "lowest integer"), (h.high, "highest integer"))]  # fmt: skip
    names = [h.name for h in found]
    layer = alt.param("layer", value=names[0], bind=alt.binding_select(options=names, name="input of "))
    bars = (
        alt.Chart(alt.Data(values=values))
        .transform_filter("datum.name == layer")
        .transform_flatten(["low", "high", "count"])
        .mark_bar(color=FIRST, binSpacing=0)
        .encode(
            x=alt.X("low:Q", bin="binned", title="value in the float network", axis=alt.Axis(tickCount=8)),
            x2="high:Q",
            y=alt.Y(
                "count:Q",
                scale=alt.Scale(type="symlog"),
                title="values, logarithmic",
                axis=alt.Axis(tickCount=4, format="~s"),
            ),
            tooltip=[alt.Tooltip("low:Q"), alt.Tooltip("high:Q"), alt.Tooltip("count:Q", format=",")],
        )
    )
    rules = (
        alt.Chart(alt.Data(values=ends))
        .transform_filter("datum.name == layer")
        .mark_rule(color=MARKED, strokeWidth=2, strokeDash=[5, 3])
        .encode(x="end:Q", tooltip=["what:N", alt.Tooltip("end:Q", format=".4g")])
    )
    return _spec(alt.layer(bars, rules).add_params(layer), height=240)


def budget_chart(points: Sequence[tuple[float, float]]) -> Spec:
    """The error predicted for each budget."""
    values = [{"budget": budget, "error": max(error, 1e-9)} for budget, error in points]
    line = alt.Chart(alt.Data(values=values)).mark_line(color=FIRST, point=alt.OverlayMarkDef(color=FIRST, size=60))
    x = alt.X("budget:Q", scale=alt.Scale(zero=False), title="budget", axis=alt.Axis(tickCount=7, format="~s"))
    y = alt.Y("error:Q", scale=alt.Scale(type="log"), title="predicted error", axis=alt.Axis(tickCount=5, format="~g"))
    return _spec(line.encode(x=x, y=y, tooltip=["budget:Q", alt.Tooltip("error:Q", format=".3g")]), height=240)


# ---- several runs


def bytes_chart(runs: Sequence[RunFacts]) -> Spec:
    """Bytes against predicted agreement."""
    return _trade_off(runs, [run.summary.bytes for run in runs], "bytes of the weights", "~s")


def speed_chart(runs: Sequence[RunFacts]) -> Spec:
    """Milliseconds against predicted agreement."""
    return _trade_off(runs, [run.origin.milliseconds for run in runs], "milliseconds an image", "~g")


def _trade_off(runs: Sequence[RunFacts], costs: Sequence[int | float | None], title: str, numbers: str) -> Spec:
    kept = best(costs, [run.agreement for run in runs])
    values = [
        {"run": run.origin.label, "cost": cost, "best": BEST[not mark],
         "agreement": e.agreement, "low": e.low, "high": e.high}
        for run, cost, mark in zip(runs, costs, kept, strict=True)
        if cost is not None and (e := run.summary.estimate)
    ]  # fmt: skip
    x = alt.X(
        "cost:Q", title=title, scale=alt.Scale(zero=False, padding=40), axis=alt.Axis(tickCount=6, format=numbers)
    )
    y = alt.Y("agreement:Q", title="predicted agreement, %", scale=alt.Scale(zero=False, domainMax=100))
    base = alt.Chart(alt.Data(values=values)).encode(x=x, y=y)
    tooltip = [
        "run:N",
        alt.Tooltip("cost:Q", title=title),
        *(_tip(n, n) for n in ("agreement", "low", "high")),
        "best:N",
    ]
    front = base.transform_filter(f"datum.best == '{BEST[0]}'").mark_line(color=MARKED, strokeDash=[4, 3])
    spread = base.mark_rule(color=FIRST, opacity=0.4, strokeWidth=2).encode(y=alt.Y("low:Q"), y2="high:Q")
    shape = alt.Shape(
        "best:N", title=None, scale=alt.Scale(domain=BEST, range=["diamond", "circle"]), legend=alt.Legend(orient="top")
    )
    colour = _colour("best:N", BEST, [MARKED, FIRST])
    dots = base.mark_point(size=130, filled=True, opacity=1).encode(shape=shape, color=colour, tooltip=tooltip)
    names = base.mark_text(dx=8, dy=-9, align="left", color="var(--ink)").encode(text="run:N")
    return _spec(alt.layer(spread, front, dots, names), height=300)


def noise_chart(runs: Sequence[RunFacts]) -> Spec:
    """What each layer alone does to the output, in all runs."""
    values = [
        {"run": run.origin.label, "name": row.name, "noise": row.noise}
        for run in runs for row in run.layers if row.noise is not None
    ]  # fmt: skip
    labels = [run.origin.label for run in runs]
    x = alt.X(
        "noise:Q",
        title="noise at the output, % of its variance",
        scale=alt.Scale(type="symlog", constant=0.1),
        axis=alt.Axis(tickCount=4, format="~g"),
    )
    colour = _colour("run:N", labels, [SERIES[i % len(SERIES)] for i in range(len(labels))])
    dots = (
        alt.Chart(alt.Data(values=values))
        .mark_point(size=45, filled=True, opacity=0.9)
        .encode(x=x, y=_layers_axis(), color=colour, shape=alt.Shape("run:N", sort=labels, legend=None),
                tooltip=["run:N", "name:N", alt.Tooltip("noise:Q", format=".3g")])
    )  # fmt: skip
    return _spec(dots, height=_height(len({value["name"] for value in values})))


# ---- what charts share


def _layers_axis() -> alt.Y:
    return alt.Y("name:N", sort=None, title=None, axis=alt.Axis(labelLimit=150, labelOverlap=True))


def _colour(field: str, names: list[str], colours: list[str]) -> alt.Color:
    return alt.Color(field, title=None, scale=alt.Scale(domain=names, range=colours), legend=alt.Legend(orient="top"))


def _tip(name: str, title: str) -> alt.Tooltip:
    return alt.Tooltip(f"{name}:Q", title=title, format=",.4~g")


def _height(num_layers: int) -> int:
    """Pixels of a row for each layer: where they are narrow, names are left out that would lie on each other."""
    return num_layers * (18 if num_layers <= 40 else 14 if num_layers <= 90 else 7)


def _spec(chart: Any, *, height: int) -> Spec:
    grid = {"domainColor": "var(--line)", "gridColor": "var(--line)", "tickColor": "var(--line)"}
    ink = {"labelColor": "var(--ink)", "titleColor": "var(--soft)"}
    shown = (
        chart.properties(
            width="container", height=height, autosize=alt.AutoSizeParams(type="fit-x", contains="padding")
        )
        .configure(background="transparent", font="system-ui, sans-serif")
        .configure_view(stroke=None)
        .configure_axis(**grid, **ink, titleFontWeight="normal", labelFontSize=11, titleFontSize=12)
        .configure_legend(labelColor="var(--ink)", symbolSize=110, labelFontSize=12)
    )
    return shown.to_dict()
