"""Draw the paper's comparisons from the rows on file: top-1 against cost, bits and sparsity; nothing is measured.

    python -m bench.tables.plots      # bench/results/paper-NETWORK-cost.svg, -bits.svg, -sparsity.svg

Plots are built, not kept in git. Needs matplotlib, which comes with `pip install "datafree[bench]"`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.rows import RESULTS
from bench.tables import paper
from bench.tables.markdown import networks_of
from bench.tables.paper_claims import family_of
from bench.tables.paper_pages import declared

COLOURS = {
    "ours": "#0b6e4f", "ours, propagated": "#7fb069", "AKD": "#b5446e", "DI": "#2f4b7c", "DI, our images": "#7d9fd3",
    "paper": "#c8102e", "paper, per tensor": "#e58a95", "DFQ": "#d17b0f", "ZeroQ": "#6f5e9e", "SQuant": "#4a9bb5",
    "plain rounding": "#8a8a8a", "magnitude, each layer": "#8a8a8a", "magnitude, one threshold": "#c0b283",
}  # fmt: skip
STYLE = {"svg.hashsalt": "datafree", "font.size": 11, "svg.fonttype": "none"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the rows, and of the plots")
    options = parser.parse_args()
    for path in draw(paper.written(options.out / "paper.jsonl"), options.out):
        print(path)


def draw(rows: list[paper.Row], folder: Path) -> list[Path]:
    """Every plot there are rows for; returns the files written."""
    rows, paths = declared(rows), []
    for network in networks_of(rows):
        here = [row for row in rows if row.network == network and not row.rejected]
        for part, figure_of in (("cost", _costs), ("bits", _steps), ("sparsity", _steps)):
            chosen = [row for row in here if row.part == part and _drawn(row)]
            if chosen:
                paths.append(folder / f"paper-{network}-{part}.svg")
                with matplotlib.rc_context(STYLE):
                    figure_of(chosen, f"{network}: {part}").savefig(paths[-1], metadata={"Date": None})
    return paths


def _drawn(row: paper.Row) -> bool:
    """Of bits, only the rows all methods are in."""
    return row.part != "bits" or row.preset.endswith("-tensor")


def _costs(rows: list[paper.Row], title: str) -> Figure:
    """Top-1, and agreement, which its error bars hide, against forward passes."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes, other = figure.subplots(1, 2)
    for method in dict.fromkeys(family_of(r.method) for r in rows):
        own = sorted((r for r in rows if family_of(r.method) == method), key=lambda r: r.forward_passes)
        x, error = [r.forward_passes for r in own], [r.lost_error for r in own]
        axes.errorbar(x, [r.top1 for r in own], error, marker="o", capsize=2, label=method, color=COLOURS[method])
        other.plot(x, [r.agreement for r in own], marker="o", color=COLOURS[method])
    label = "forward passes of one image (log)"
    other.set(xscale="log", xlabel=label, ylabel="agreement with float32, %")
    other.grid(alpha=0.3)
    other.spines[["top", "right"]].set_visible(False)
    axes.set_xscale("log")
    _finish(axes, rows[0], f"{title}, {rows[0].preset}", label)
    return figure


def _steps(rows: list[paper.Row], title: str) -> Figure:
    """Top-1 against presets."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    presets = list(dict.fromkeys(r.preset for r in rows))
    for method in dict.fromkeys(r.method for r in rows):
        own = [r for r in rows if r.method == method]
        x, y = [presets.index(r.preset) for r in own], [r.top1 for r in own]
        axes.errorbar(x, y, [r.lost_error for r in own], marker="o", capsize=2, label=method, color=COLOURS[method])
    axes.set_xticks(range(len(presets)), presets)
    _finish(axes, rows[0], title, "preset")
    return figure


def _finish(axes: Axes, row: paper.Row, title: str, label: str) -> None:
    axes.axhline(row.float_top1, color="black", linewidth=0.8, linestyle="--")
    axes.annotate("float32", (0.3, row.float_top1), xycoords=("axes fraction", "data"), va="bottom", fontsize=9)
    axes.set(title=title, xlabel=label, ylabel=f"top-1, % ({row.num_images} images)")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


if __name__ == "__main__":
    main()
