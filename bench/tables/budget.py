"""A budget of four bits on average against four bits everywhere: agreement with the float network, and bytes.

    python -m bench.tables.budget

Images are seen by evaluation only. Writes JSON lines (bench/results/budget.jsonl) and bench/results/budget.md; rows
there that current code made are not made again.
"""

from __future__ import annotations

from pathlib import Path

from bench import arguments
from bench.rows import mark
from bench.tables import markdown
from bench.tables.accuracy import Row, Way, fill_table, written

WAYS = {"uniform": Way(), "mean of 4 bits": Way(("budget.mean_bits=4",))}
FIVE = [
    "efficientnet_lite0",
    "resnet20_cifar10",
    "resnet8_cifar10",
    "mobilenetv1_025_imagenet",
    "mobilenetv2_tiny200",
]
NOTE = """The preset `w4a8` with the same bits in every layer and with `budget.mean_bits=4`: agreement with the float
network in percent, points of top-1 lost ± standard error over images (paired), bytes in percent of float32; mean over
seeds."""
SHORT_NOTE = """A budget instead of one width: `--recipe w4a8 --set budget.mean_bits=4` chooses bits for each layer.
Agreement with the float network, uniform `w4a8` / mean of 4 bits:"""


def main() -> None:
    parser = arguments.table_parser(__doc__, presets=["w4a8"], rows=WAYS)
    parser.set_defaults(networks=FIVE, seeds=[0])
    options = parser.parse_args()
    fill_table(options, "budget", WAYS, page)


def page(folder: Path) -> str:
    """One table: networks down, both ways across."""
    rows = written(folder, "budget")
    head = [f"{name}: {what}" for name in WAYS for what in ("agreement", "lost", "bytes")]
    return markdown.page(NOTE, rows, ["", *markdown.grid(head, (_line(rows, n) for n in markdown.networks_of(rows)))])


def _line(rows: list[Row], network: str) -> list[str]:
    cells = [f"{network}, {next(r.num_images for r in rows if r.network == network)} images"]
    for name in WAYS:
        own = markdown.select(rows, network, "w4a8", name)
        cells += _figures(own) if own else ["-"] * 3
    return cells


def _figures(own: list[Row]) -> list[str]:
    lost = f"{markdown.mean(own):.1f} ± {markdown.mean(own, 'lost_error'):.1f}"
    return [f"{markdown.mean(own, 'agreement'):.1f}{mark(own)}", lost, f"{100 * markdown.mean(own, 'bytes_ratio'):.1f}"]


def block(folder: Path) -> str:
    """A paragraph for README."""
    rows, told = written(folder, "budget"), []
    for network in markdown.networks_of(rows):
        own = [markdown.select(rows, network, "w4a8", name) for name in WAYS]
        if all(own):
            agreement = " / ".join(f"{markdown.mean(o, 'agreement'):.1f}" for o in own)
            size = " / ".join(f"{100 * markdown.mean(o, 'bytes_ratio'):.1f}" for o in own)
            images, old = own[0][0].num_images, mark(own[0] + own[1])
            told.append(f"{markdown.NICK[network]} {agreement} %{old} ({images} images; {size} % of the bytes)")
    return markdown.page(f"{SHORT_NOTE} {'; '.join(told)}.", rows, [])


if __name__ == "__main__":
    main()
