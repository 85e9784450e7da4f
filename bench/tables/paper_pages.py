"""Tables of paper.py's rows: its own page, and blocks of docs/paper.md."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from bench.rows import mark
from bench.tables import paper_claims
from bench.tables.markdown import NICK, grid, lettered, made_by, networks_of
from bench.tables.paper_parts import PARTS, blank, points, starts

NOTE = """Made by `python -m bench.tables.paper`; rows in paper.jsonl. Top-1 in percent ± standard error of the
difference to the float network over images (paired), in brackets agreement with it where no passes are told; *passes*:
forward passes of one image through the float network, counted in multiply-adds, images and warm-up charged each time,
the teacher in distillation too; seconds are those of a shared machine, for orientation. *paper*: layers trained one by
one on gaussian signal after free equalization. *DI*: Deep Inversion, its own images, steps of images + steps of
training on them; *DI, our images*: the same training on ours; *AKD*: warm-up + steps; all three start from plain
rounding, KL of the classes, student of the last step. "-" was not run; *rejected*: training made the student worse and
was stopped; *start kept*: training gained nothing."""
MAIN = ("resnet20_cifar10", "resnet_digits", "mobilenet_digits")  # whose combinations a short page shows, the first


def page(rows: list[Any], folder: Path) -> str:
    """The whole page: claims, then one table a network and part."""
    rows = declared(rows)
    text = [f"{NOTE}\n", made_by(rows), "\n## The paper's claims\n", *claimed(rows, folder)]
    for network in networks_of(rows):
        here = [r for r in rows if r.network == network]
        text.append(f"\n## {network}: {_head(here)}")
        for part, build in (("cost", _costs), ("bits", _passes), ("sparsity", _passes), ("combination", _combined)):
            own = [r for r in here if r.part == part]
            if own:
                text += [f"\n### {part}\n", *build(own)]
    return "\n".join(text) + "\n"


def declared(rows: Iterable[Any]) -> list[Any]:
    """Rows of points there are today, in their order."""
    rows = list(rows)
    order: dict[tuple[str, ...], int] = {}
    for network in networks_of(rows):
        order |= {(network, p.part, p.method, p.preset): i for i, p in enumerate(points(network, PARTS))}
    at = lambda r: (r.network, r.part, r.method, r.preset)  # noqa: E731
    return sorted((r for r in rows if at(r) in order), key=lambda r: order[at(r)])


def _head(rows: list[Any]) -> str:
    seeds = ", ".join(str(s) for s in sorted({r.seed for r in rows}))
    return f"float top-1 {max(r.float_top1 for r in rows):.1f} % on {rows[0].num_images} images, seed {seeds}"


def claimed(rows: list[Any], folder: Path) -> list[str]:
    return [*paper_claims.claims(rows, folder), f"\n{paper_claims.NOTE}"]


# ---- blocks of docs/paper.md


def claims_block(rows: list[Any], folder: Path) -> str:
    return _block(declared(rows), claimed(declared(rows), folder))


def cost_block(rows: list[Any], folder: Path) -> str:
    """Methods down, networks across: passes and top-1."""
    rows = [r for r in declared(rows) if r.part == "cost"]
    return _block(rows, _across(rows, lambda r: f"{r.forward_passes:,.0f}: {_top1(r)}"))


def bits_block(rows: list[Any], folder: Path) -> str:
    """A table a network, top-1 and agreement."""
    rows = [r for r in declared(rows) if r.part == "bits"]
    return _block(rows, _each(rows, lambda own: _grid(own, _top1)))


def combination_block(rows: list[Any], folder: Path) -> str:
    """The tables of one network, the first of those there are."""
    rows = [r for r in declared(rows) if r.part == "combination"]
    main = next((n for n in MAIN if any(r.network == n for r in rows)), "")
    rows = [r for r in rows if r.network == main]
    return _block(rows, _each(rows, _combined))


def _block(rows: list[Any], lines: list[str]) -> str:
    if not rows:
        return "Not run yet.\n"
    return "\n".join([*lines, "", made_by(rows)]) + "\n"


def _each(rows: list[Any], build: Any) -> list[str]:
    lines = []
    for network in networks_of(rows):
        here = [r for r in rows if r.network == network]
        lines += [f"{NICK[network]}, {_head(here)}:\n", *build(here), ""]
    return lines[:-1]


def _across(rows: list[Any], cell: Any) -> list[str]:
    networks, methods = networks_of(rows), dict.fromkeys(r.method for r in rows)
    at = {(r.method, r.network): r for r in rows}
    heads = [NICK[n] for n in networks]
    return grid(heads, ([m, *(cell(at[m, n]) if (m, n) in at else "-" for n in networks)] for m in methods))


# ---- parts


def _costs(rows: list[Any]) -> list[str]:
    lines = ([r.method, f"{r.forward_passes:,.0f}", f"{r.seconds:.0f}", _top1(r)] for r in rows)
    return grid(["passes", "seconds", "top-1"], lines)


def _passes(rows: list[Any]) -> list[str]:
    """Presets down, methods across, with what each took."""
    return _grid(rows, lambda r: f"{_figure(r)} ({r.forward_passes:,.0f} passes, {r.seconds:.0f} s){_marks(r)}")


def _grid(rows: list[Any], cell: Any) -> list[str]:
    """Presets down, methods across."""
    presets, methods = dict.fromkeys(r.preset for r in rows), dict.fromkeys(r.method for r in rows)
    at = {(r.preset, r.method): r for r in rows}
    told = lambda preset, method: cell(at[preset, method]) if (preset, method) in at else ""  # noqa: E731
    return lettered(presets, methods, told, partial(blank, rows[0].part))


def _combined(rows: list[Any]) -> list[str]:
    """A table a preset: where training starts down, what it is trained on across."""
    lines = []
    for preset in dict.fromkeys(r.preset for r in rows):
        at = {tuple(r.method.split(" from ")): r for r in rows if r.preset == preset}
        ways = dict.fromkeys(way for way, _ in at)
        body = ([s, *(_top1(at[w, s]) if (w, s) in at else "-" for w in ways)] for s in starts(preset))
        lines += [f"`{preset}`, from:\n", *grid(ways, body), ""]
    return lines[:-1]


def _top1(row: Any) -> str:
    """Top-1 and agreement of a cell."""
    return _figure(row) + ("" if row.rejected else f" ({row.agreement:.0f})") + _marks(row)


def _figure(row: Any) -> str:
    return "rejected" if row.rejected else f"{row.top1:.1f} ± {row.lost_error:.1f}"


def _marks(row: Any) -> str:
    return (" (start kept)" if "the start is kept" in row.note else "") + mark([row])
