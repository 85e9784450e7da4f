"""The paper's parts one by one: its presets with one thing changed at a time.

    python -m bench.tables.ablation                                               # four networks, three presets
    python -m bench.tables.ablation --networks resnet20_cifar10 --presets paper-prune50

Folding is not among what is changed: everything that follows works on folded weights. Images are seen by evaluation
only, except in the rows "real", where layers are trained on images that are never evaluated on. Writes JSON lines
(bench/results/ablation.jsonl) and bench/results/ablation.md; rows there that current code made are not made again.
"""

from __future__ import annotations

from pathlib import Path

from bench import arguments
from bench.networks.real_images import AS_MANY, REFERENCES
from bench.tables import markdown
from bench.tables.accuracy import Row, Way, fill_table, references, written

PRESETS = ("paper-w8a8", "paper-w4a8", "paper-prune50")
FOUR = ["efficientnet_lite0", "resnet20_cifar10", "mobilenetv1_025_imagenet", "mobilenetv2_tiny200"]
WHOLE = "the paper's"
REAL = references(REFERENCES[name] for name in AS_MANY)
UNTOUCHED = Way(("solve.method=nearest", "solve.bias_correction=false", "solve.mend=false"))
GROUPS = {
    "equalization": {
        "none": Way(("equalize=off",)),
        "DFQ's pairs": Way(("equalize=between",)),
        "v_o only": Way(("equalize=rows",)),
        "AFCLE in full": Way(),
    },
    "signal": {
        "Gaussian as written": Way(),
        "Gaussian, pooling executed": Way(("signal.pooling=executed",)),
        "propagated": Way(("signal.kind=propagated",)),
        "inverted": Way(("signal.kind=inverted",)),
        **REAL,
    },
    "training": {
        "none": UNTOUCHED,
        "bias only": Way(("solve.method=nearest",)),
        "trained": Way(),
        "closed form": Way(("solve.method=gptq",)),
    },
    "zeros": {"one threshold": Way(), "each layer alike": Way(("prune.scope=layer",))},
}
WAYS = {
    WHOLE: Way(),
    **{f"{group}: {name}": way for group, ways in GROUPS.items() for name, way in ways.items() if way != Way()},
}
NOTE = """The paper's presets with one thing changed at a time: points of top-1 lost, ± standard error over images
(paired), in brackets agreement with the float network in percent; mean over seeds; "-" was not run. *(the paper's)*:
the preset as it is, the same row in every group. *Gaussian as written*: pooling passed over, statistics stay what they
were before it. *inverted*: our images. *real*: images that are never evaluated on, as many as ours. *training, none*:
rounded to nearest, or smallest weights to zero, after equalization, nothing made up for; *bias only*: means of outputs
brought back; *closed form*: our solver, layers one by one. Folding BatchNorm has no row of its own: all that follows
works on folded weights."""


def main() -> None:
    parser = arguments.table_parser(__doc__, presets=PRESETS, rows=WAYS)
    parser.set_defaults(networks=FOUR, seeds=[0])
    fill_table(parser.parse_args(), "ablation", WAYS, page, blank)


def blank(preset: str, name: str) -> str:
    """Why a preset has no row of a name; "" where it has."""
    return "nothing becomes zero" if name.startswith("zeros") and "prune" not in preset else ""


def page(folder: Path) -> str:
    """A table a preset: what is changed down, networks across."""
    rows = written(folder, "ablation")
    return markdown.page(NOTE, rows, _tables(rows))


def block(folder: Path) -> str:
    """The same tables, for docs/paper.md."""
    return page(folder)


def _tables(rows: list[Row]) -> list[str]:
    found, text = markdown.networks_of(rows), []
    heads = [_head(rows, network) for network in found]
    for preset in (p for p in PRESETS if any(r.preset == p for r in rows)):
        lines = [line for group in GROUPS for line in _group(rows, found, preset, group)]
        text += [f"\n### `{preset}`\n", *markdown.grid(heads, lines)]
    return text


def _head(rows: list[Row], network: str) -> str:
    first = next(r for r in rows if r.network == network)
    return f"{markdown.NICK[network]}, {first.num_images} images"


def _group(rows: list[Row], found: list[str], preset: str, group: str) -> list[list[str]]:
    """Lines of one part that is changed; none where the preset has no such part."""
    if blank(preset, group):
        return []
    lines = []
    for name, way in GROUPS[group].items():
        key, told = (WHOLE, f"{name} ({WHOLE})") if way == Way() else (f"{group}: {name}", name)
        cells = [markdown.lost(markdown.select(rows, network, preset, key)) or "-" for network in found]
        lines.append([f"{group}: {told}", *cells])
    return lines


if __name__ == "__main__":
    main()
