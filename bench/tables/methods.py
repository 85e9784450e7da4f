"""Every signal with every solver: top-1 lost and seconds, at one preset, on trained networks and real images.

    python -m bench.tables.methods --networks resnet20_cifar10 --presets w4a8 w4a4

Layers are solved one by one, except in the last row, `gptq` in sequence; equalization is off. Images of `matched` and
`inverted` are made once for each network. *real, as many*: as many real images as `inverted` makes, which are never
evaluated on. Writes JSON lines (bench/results/methods.jsonl) and bench/results/methods.md; rows there that current code
made are not made again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench import arguments
from bench.networks.real_images import REFERENCES
from bench.rows import mark
from bench.tables import markdown
from bench.tables.accuracy import Row, Way, fill_table, written

SOLVERS = {
    "nearest": ("solve.method=nearest",), "squant": ("solve.method=squant",), "adaround": ("solve.method=adaround",),
    "straight-through": ("solve.method=straight_through",), "gptq": ("solve.method=gptq",),
    "gptq, in sequence": ("solve.method=gptq", "solve.sequential=true"),
}  # fmt: skip
REAL = REFERENCES["real, as many"]
SIGNALS = {
    **{kind: (f"signal.kind={kind}",) for kind in ("gaussian", "propagated", "matched", "inverted")},
    REAL.name: REAL.settings,
}
ALONE = ("equalize=off", "solve.sequential=false")
WAYS = {
    f"{signal}; {solver}": Way((*ALONE, *given, *settings), REAL if signal == REAL.name else None)
    for signal, given in SIGNALS.items()
    for solver, settings in SOLVERS.items()
}
NOTE = """Points of top-1 lost ± standard error over images (paired), in brackets seconds of compress() without
making images. `matched` 40 steps, `inverted` 200; *real, as many*: as many real images as `inverted` makes."""


def main() -> None:
    parser = arguments.table_parser(__doc__, presets=["w4a8"], rows=WAYS)
    parser.set_defaults(networks=["efficientnet_lite0", "resnet20_cifar10"], seeds=[0], images=1000)
    options = parser.parse_args()
    fill_table(options, "methods", WAYS, page)


def page(folder: Path) -> str:
    """One table a network and preset: solvers down, signals across."""
    rows = written(folder, "methods")
    return markdown.page(NOTE, rows, _tables(rows))


def _tables(rows: list[Row]) -> Iterator[str]:
    for network, preset in dict.fromkeys((r.network, r.preset) for r in rows):
        here = [r for r in rows if (r.network, r.preset) == (network, preset)]
        made = {r.row.partition(";")[0]: r.image_seconds for r in here if r.image_seconds}
        told = "".join(f"; {signal}: {seconds:.0f} s" for signal, seconds in made.items())
        yield f"\n### {network}, {preset}, {here[0].num_images} images{told}\n"
        own = {name: markdown.select(here, network, preset, name) for name in WAYS}
        lines = ([solver, *(_cell(own[f"{signal}; {solver}"]) for signal in SIGNALS)] for solver in SOLVERS)
        yield "\n".join(markdown.grid(SIGNALS, lines))


def _cell(rows: list[Row]) -> str:
    if not rows:
        return "-"
    lost, error, seconds = (markdown.mean(rows, field) for field in ("lost", "lost_error", "seconds"))
    return f"{lost:.1f} ± {error:.1f} ({seconds:.0f}){mark(rows)}"


if __name__ == "__main__":
    main()
