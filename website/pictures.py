"""Draw the pictures of docs/ with the digits network, which comes with the package; half a minute.

    python -m website.pictures      # docs/pictures/*.svg

Colours are variables of the file, so that a page in dark colours shows it in dark colours.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import Tensor, fx

from datafree import Recipe, Run, compress, load_model
from datafree import graph as g
from datafree.recipe import Propagated
from datafree.signals import make_signal

FOLDER = Path(__file__).parent.parent / "docs" / "pictures"
INK, FAINT, PANEL = "#1a1a1e", "#8d8d92", "#eeeef1"
BLUE, ORANGE = "#0072b2", "#d55e00"  # Okabe and Ito's, which colour-blind people tell apart
DARK = {INK: "#e6e6ea", FAINT: "#8d8d93", PANEL: "#2b2d38", BLUE: "#56b4e9", ORANGE: "#f0a04b"}
STYLE = {
    "svg.hashsalt": "datafree", "svg.fonttype": "none", "font.size": 10, "font.family": "sans-serif",
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": FAINT, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
}  # fmt: skip
STEPS = (
    ("trace", "a private copy\nas a graph"), ("read", "mean and std\nof BatchNorm"),
    ("fold", "BatchNorm into\nits neighbour"), ("equalize", "ranges move\nbetween layers"),
    ("signal", "inputs for\nevery layer"), ("plan", "bits and grid\nof every tensor"),
    ("solve", "each layer by\nitself"), ("distill", "only if the\nrecipe asks"),
    ("assemble", "integers and\nscales"), ("check", "the file is run\nand compared"),
)  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    model, example = load_model("demo")
    even = compress(model, Recipe.preset("w8a8-tensor"), example)
    uneven = compress(model, Recipe.preset("w8a8-tensor").updated(["equalize=off"]), example)
    narrow = Recipe.preset("w4a8").updated(["solve.sequential=false"])
    solved = compress(model, narrow, example)
    nearest = compress(model, narrow.updated(["solve.method=nearest", "solve.mend=false"]), example, images=solved)
    for name, draw in {
        "steps": steps,
        "equalize": lambda: equalize(uneven.teacher, even.teacher),
        "signal": lambda: remembered(solved),
        "solve": lambda: errors(nearest, solved),
    }.items():
        print(written(name, draw))


def written(name: str, draw: Callable[[], Figure]) -> Path:
    """The picture as an SVG file whose colours follow those of the page."""
    text = io.StringIO()
    with matplotlib.rc_context(STYLE):
        draw().savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    for number, colour in enumerate(DARK):
        svg = svg.replace(colour, f"var(--c{number})")
    light, dark = ("".join(f"--c{n}:{c};" for n, c in enumerate(colours)) for colours in (DARK, DARK.values()))
    style = f"<style>:root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    path = FOLDER / f"{name}.svg"
    path.write_text(svg.replace("<defs>", f"{style}\n<defs>", 1))
    return path


def steps() -> Figure:
    """Boxes in two rows, in the order that `compress` goes through them."""
    figure = Figure(figsize=(9, 2.7))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 5), ylim=(0, 2))
    axes.axis("off")
    for number, (name, what) in enumerate(STEPS):
        x, y = number % 5, 1 - number // 5
        box = FancyBboxPatch((x + 0.06, y + 0.14), 0.84, 0.72, boxstyle="round,pad=0,rounding_size=0.05")
        box.set(facecolor=PANEL, edgecolor=FAINT, linewidth=0.8)
        axes.add_patch(box)
        axes.text(x + 0.48, y + 0.66, f"{number + 1}. {name}", ha="center", weight="bold", size=11)
        axes.text(x + 0.48, y + 0.42, what, ha="center", va="center", size=9.5, linespacing=1.3)
        if number % 5 < 4:
            axes.annotate("", (x + 1.07, y + 0.5), (x + 0.89, y + 0.5), arrowprops={"arrowstyle": "->", "color": FAINT})
    return figure


def equalize(before: fx.GraphModule, after: fx.GraphModule) -> Figure:
    """Largest weight of every row of the layer whose rows are least even, and the step that all of them share."""
    figure, axes = _axes(7, 3)
    name = max(g.layers(before), key=lambda n: _unevenness(_rows(before, n)))
    for label, net, colour, marker in (("as trained", before, ORANGE, "o"), ("equalized", after, BLUE, "s")):
        rows = _rows(net, name).sort().values
        rows = rows / rows[-1]  # of the largest, to which the step is tied
        axes.semilogy(rows.tolist(), marker=marker, markersize=4, color=colour, label=label)
    axes.axhline(1 / 127, color=FAINT, linestyle="--", linewidth=1)
    axes.text(len(rows) - 1, 1 / 127 * 0.87, "one integer step", ha="right", va="top", color=INK)
    axes.set(xlabel=f"output channels of {name}, sorted", ylabel="largest weight,\nshare of the layer's")
    axes.legend(loc="lower right", bbox_to_anchor=(0.8, 0.35))
    return figure


def remembered(run: Run) -> Figure:
    """Deviation of every channel: what BatchNorm remembers, and what images leave there."""
    figure = Figure(figsize=(7, 3.3), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    signal = make_signal(run.teacher, run.stats, Propagated(), seed=0, input_range=run.input_range)
    shown = (("procedural images", signal.inputs, ORANGE), ("the same, moved 200 steps", run.images, BLUE))
    for axes, (title, images, colour) in zip(panels, shown, strict=True):
        x, y = _deviations(run, images)
        axes.loglog(x, y, ".", markersize=3, color=colour)
        axes.plot([0.03, 10], [0.03, 10], color=FAINT, linewidth=1)
        axes.set(title=title, xlabel="std that BatchNorm remembers", xlim=(0.03, 10), ylim=(0.03, 10))
    panels[0].set_ylabel("std on these images")
    return figure


def errors(nearest: Run, solved: Run) -> Figure:
    """What rounding to 4 bits leaves of every layer's output, to the nearest integer and solved."""
    figure, axes = _axes(7, 3)
    eight = [i for i, layer in enumerate(solved.layers) if layer.bits == 8]
    inner = [i for i in range(len(solved.layers)) if i not in eight]
    for label, run, colour, marker in (("to the nearest", nearest, ORANGE, "o"), ("solved", solved, BLUE, "s")):
        axes.plot(
            inner, [run.layers[i].error_db for i in inner], marker=marker, markersize=4, color=colour, label=label
        )
    axes.set(xlabel="layers of 4 bits, in order", ylabel="signal to error\nat the output, dB")
    axes.legend(loc="upper right", ncols=2, bbox_to_anchor=(1, 1.12))
    return figure


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _rows(net: fx.GraphModule, name: str) -> Tensor:
    return g.weight(net, g.layers(net)[name]).flatten(1).abs().amax(1)


def _unevenness(rows: Tensor) -> float:
    return (rows.max() / rows.clamp_min(1e-12).min()).item() if len(rows) < 100 else 0.0


@torch.no_grad()
def _deviations(run: Run, images: tuple[Tensor, ...]) -> tuple[list[float], list[float]]:
    """Of every channel behind a BatchNorm: remembered, and found on images."""
    kept, found = [], []
    for node, values in g.walk(run.teacher, images):
        if node.name in run.stats:
            x = values[node] = g.execute(node, values)
            kept += run.stats[node.name].std.tolist()
            found += x.transpose(0, 1).flatten(1).std(1).tolist()
    return kept, found


if __name__ == "__main__":
    main()
