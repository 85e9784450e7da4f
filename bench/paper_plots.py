"""Tables and plots of bench/paper.py's rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = {
    "ours": "#0b6e4f", "ours, propagated": "#7fb069", "AKD": "#b5446e", "DI": "#2f4b7c", "DFQ": "#d17b0f",
    "ZeroQ": "#6f5e9e", "SQuant": "#4a9bb5", "plain rounding": "#8a8a8a", "magnitude, each layer": "#8a8a8a",
    "magnitude, one threshold": "#c0b283",
}  # fmt: skip
NOTE = """Made by `python bench/paper.py`; rows in paper.jsonl. Top-1 in percent ± standard error of the difference to
the float network over images (paired); *passes*: forward passes of one image through the float network, counted in
multiply-adds, images included each time; seconds are those of a shared machine, for orientation.
"""


def tables(rows: list[Any]) -> str:
    """Markdown: one table a network and part."""
    text = [NOTE]
    for network in dict.fromkeys(row.network for row in rows):
        here = [row for row in rows if row.network == network]
        seeds = ", ".join(str(s) for s in sorted({row.seed for row in here}))
        head = f"float top-1 {here[0].float_top1:.1f} % on {here[0].num_images} images, seed {seeds}"
        text.append(f"\n## {network}: {head}")
        for part, build in (("cost", _cost), ("bits", _grid), ("sparsity", _grid), ("combination", _grid)):
            chosen = [row for row in here if row.part == part]
            if chosen:
                text += [f"\n### {part}\n", build(chosen)]
    return "\n".join(text) + "\n"


def _cost(rows: list[Any]) -> str:
    lines = ["| method | preset | passes | seconds | top-1 | agreement |", "|---|---|---|---|---|---|"]
    for r in rows:
        lines.append(
            f"| {r.method} | {r.preset} | {r.forward_passes:,.0f} | {r.seconds:.0f} "
            f"| {r.top1:.1f} ± {r.lost_error:.1f} | {r.agreement:.1f} |"
        )
    return "\n".join(lines)


def _grid(rows: list[Any]) -> str:
    presets, methods = dict.fromkeys(r.preset for r in rows), dict.fromkeys(r.method for r in rows)
    lines = ["| | " + " | ".join(methods) + " |", "|---|" + "---|" * len(methods)]
    at = {(r.preset, r.method): r for r in rows}
    for preset in presets:
        cells = [_cell(at.get((preset, method))) for method in methods]
        lines.append(f"| {preset} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: Any) -> str:
    if row is None:
        return ""
    return f"{row.top1:.1f} ± {row.lost_error:.1f} ({row.forward_passes:,.0f} passes, {row.seconds:.0f} s)"


def plots(rows: list[Any], folder: Path) -> None:
    """paper-NETWORK-cost.svg, -bits.svg, -sparsity.svg; needs matplotlib."""
    try:
        import matplotlib

        matplotlib.use("svg")
        matplotlib.rcParams.update({"svg.hashsalt": "datafree", "font.size": 11, "svg.fonttype": "none"})
    except ModuleNotFoundError:
        print('plots skipped: matplotlib is not installed; pip install "datafree[bench]"')
        return
    for network in dict.fromkeys(row.network for row in rows):
        here = [row for row in rows if row.network == network]
        for part, draw in (("cost", _plot_cost), ("bits", _plot_steps), ("sparsity", _plot_steps)):
            chosen = [row for row in here if row.part == part]
            if chosen:
                draw(chosen, f"{network}: {part}", folder / f"paper-{network}-{part}.svg")


def _plot_cost(rows: list[Any], title: str, path: Path) -> None:
    """Top-1, and agreement, which its error bars hide, against forward passes."""
    from matplotlib import pyplot as plt

    figure, (axes, other) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for method in dict.fromkeys(r.method.partition(",")[0] for r in rows):
        own = sorted((r for r in rows if r.method.partition(",")[0] == method), key=lambda r: r.forward_passes)
        x, error = [r.forward_passes for r in own], [r.lost_error for r in own]
        axes.errorbar(x, [r.top1 for r in own], error, marker="o", capsize=2, label=method, color=COLOURS[method])
        other.plot(x, [r.agreement for r in own], marker="o", color=COLOURS[method])
    other.set(xscale="log", xlabel="forward passes of one image (log)", ylabel="agreement with float32, %")
    other.grid(alpha=0.3)
    other.spines[["top", "right"]].set_visible(False)
    _finish(figure, axes, rows[0], f"{title}, {rows[0].preset}", "forward passes of one image (log)", path, log=True)


def _plot_steps(rows: list[Any], title: str, path: Path) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    presets = list(dict.fromkeys(r.preset for r in rows))
    for method in dict.fromkeys(r.method for r in rows):
        own = [r for r in rows if r.method == method]
        x, y = [presets.index(r.preset) for r in own], [r.top1 for r in own]
        axes.errorbar(x, y, [r.lost_error for r in own], marker="o", capsize=2, label=method, color=COLOURS[method])
    axes.set_xticks(range(len(presets)), presets)
    _finish(figure, axes, rows[0], title, "preset", path, log=False)


def _finish(figure: Any, axes: Any, row: Any, title: str, label: str, path: Path, *, log: bool) -> None:
    from matplotlib import pyplot as plt

    axes.axhline(row.float_top1, color="black", linewidth=0.8, linestyle="--")
    axes.annotate("float32", (0.3, row.float_top1), xycoords=("axes fraction", "data"), va="bottom", fontsize=9)
    if log:
        axes.set_xscale("log")
    axes.set(title=title, xlabel=label, ylabel=f"top-1, % ({row.num_images} images)")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
