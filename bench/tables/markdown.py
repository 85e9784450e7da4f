"""Markdown of rows: one cell, a table of presets and ways, what its blanks mean."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

from bench.networks.real_images import AS_MANY, REFERENCES
from bench.networks.trained import NETWORKS
from bench.rows import commits_note, mark, newest
from bench.tables.accuracy import Row, never

NICK = {
    "efficientnet_lite0": "efficientnet lite0", "resnet20_cifar10": "resnet20",
    "mobilenetv1_025_imagenet": "mobilenetv1 0.25", "mobilenetv2_tiny200": "mobilenetv2", "resnet8_cifar10": "resnet8",
    "mobilenetv1_025_vww": "mobilenetv1 vww", "resnet_digits": "resnet digits", "mobilenet_digits": "mobilenet digits",
}  # fmt: skip
Blank = Callable[[str, str], str]
"""Why a preset has no row of a name; "" where it could have one."""


def select(rows: Iterable[Row], network: str, preset: str, name: str) -> list[Row]:
    """What a cell is made of: its current rows, or its old ones where there is none."""
    return newest(r for r in rows if (r.network, r.preset, r.row) == (network, preset, name))


def mean(rows: list[Row], field: str = "lost") -> float | None:
    """Over seeds; None without rows, or where they have no such figure."""
    values = [value for r in rows if (value := getattr(r, field)) is not None]
    return statistics.mean(values) if values else None


def networks_of(rows: Iterable[Row]) -> list[str]:
    found = {r.network for r in rows}
    return [n for n in NETWORKS if n in found]


def lost(rows: list[Row]) -> str:
    """Points lost ± standard error, agreement in brackets, and a mark where a row is old; "" without rows."""
    if not rows:
        return ""
    return f"{mean(rows):.1f} ± {mean(rows, 'lost_error'):.1f} ({mean(rows, 'agreement'):.0f}){mark(rows)}"


def grid(head: Iterable[str], body: Iterable[Iterable[str]]) -> list[str]:
    """Lines of a table; the first column has no title."""
    head = list(head)
    lines = ["| | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(cells) + " |" for cells in body]


def lettered(presets: Iterable[str], names: Iterable[str], cell: Callable[[str, str], str], blank: Blank) -> list[str]:
    """Lines of a table; a cell that cannot be filled has a letter, explained below the table; "-" was not run."""
    names, letters = list(names), {}

    def told(preset: str, name: str) -> str:
        reason = blank(preset, name)
        if reason:
            return f"({letters.setdefault(reason, chr(ord('a') + len(letters)))})"
        return cell(preset, name) or "-"

    lines = grid(names, ([preset, *(told(preset, name) for name in names)] for preset in presets))
    return lines + [f"\n({letter}) {reason}" for reason, letter in letters.items()]


def ways(
    rows: list[Row], network: str, presets: Iterable[str], names: Iterable[str], blank: Blank = never
) -> list[str]:
    """Lines of one network's table: presets down, ways across; ways and presets without rows are left out."""
    here = [r for r in rows if r.network == network]
    names = [n for n in names if any(r.row == n for r in here)]
    presets = [p for p in presets if any(r.preset == p and r.row in names for r in here)]
    return lettered(presets, names, lambda preset, name: lost(select(here, network, preset, name)), blank)


def seconds(rows: list[Row], network: str, presets: Iterable[str]) -> str:
    """Seconds of `ours`, preset by preset, and of making its images."""
    found = [(preset, select(rows, network, preset, "ours")) for preset in presets]
    told = ", ".join(f"{preset} {mean(own, 'seconds'):.0f}" for preset, own in found if own)
    made = [r.image_seconds for _, own in found for r in own if r.image_seconds]
    images = f"; images {statistics.mean(made):.0f}, once for all" if made else ""
    return f"\nSeconds of ours: {told}{images}." if told else ""


def figures(rows: list[Row], network: str, preset: str, names: Iterable[tuple[str, ...]]) -> str:
    """Points lost as "a / b / c" for a page that is short; of each group of ways the one that loses least."""
    groups = [[own for n in group if (own := select(rows, network, preset, n))] for group in names]
    best = [min(group, key=lambda own: mean(own) or 0.0) if group else [] for group in groups]
    used = [r for own in best for r in own]
    return " / ".join(f"{mean(own):.1f}" if own else "-" for own in best) + (mark(used) if used else "")


def short(rows: list[Row], presets: Iterable[str], names: Iterable[tuple[str, ...]]) -> list[str]:
    """Lines of a table over networks: presets down, networks across."""
    names, networks = list(names), networks_of(rows)
    counts = {r.network: r.num_images for r in rows}
    heads = [f"{NICK[n]}, {counts[n]} images" for n in networks]
    return grid(heads, ([p, *(figures(rows, n, p, names) for n in networks)] for p in presets))


def full(rows: list[Row], presets: Iterable[str], methods: Iterable[str], blank: Blank = never) -> list[str]:
    """Lines of everything on file: for every network methods, seconds, and what real images give."""
    presets, text = list(presets), []
    for network in networks_of(rows):
        first = next(r for r in rows if r.network == network)
        text.append(f"\n### {network}: float top-1 {first.float_top1:.1f} % on {first.num_images} images\n")
        text += ways(rows, network, presets, [*methods, *AS_MANY], blank)
        text += [seconds(rows, network, presets), *references_of(rows, network, presets)]
    return text


def references_of(rows: list[Row], network: str, presets: list[str]) -> list[str]:
    """Lines of the table of real images, where there are more than as many as ours makes, and why others are not."""
    more = {name: real for name, real in REFERENCES.items() if name not in AS_MANY}
    if not any(r.network == network and r.row in REFERENCES for r in rows):
        return []
    missing = {real.missing(network): f"{real.kind}, {real.count or 'as many'}" for real in more.values()}
    reasons = [f"\nNo *{name}*: {reason}." for reason, name in missing.items() if reason]
    if not any(r.network == network and r.row in more for r in rows):
        return reasons
    return ["\nReal images:\n", *ways(rows, network, presets, ["ours", *REFERENCES]), *reasons]


def page(note: str, rows: list[Row], body: Iterable[str]) -> str:
    """A whole page: what it shows, which commits made it, tables."""
    seeds = ", ".join(str(s) for s in sorted({r.seed for r in rows}))
    return "\n".join([f"{note.strip()}\n", f"Seeds {seeds}. {made_by(rows)}", *body]) + "\n"


def made_by(rows: Iterable[Any]) -> str:
    """Commits of rows and of their images."""
    rows = list(rows)
    images = ", ".join(sorted({r.images_commit for r in rows if r.images_commit}))
    return commits_note(rows) + (f" Images of commit {images}." if images else "")


def block(note: str, rows: list[Row], presets: Iterable[str], names: Iterable[tuple[str, ...]]) -> str:
    """The short form for README: a sentence or two, standard errors, which commits made it, one table."""
    names, presets = list(names), list(presets)
    used = [r for r in rows if r.preset in presets and any(r.row in group for group in names)]
    errors = [r.lost_error for r in used if r.lost_error is not None]
    return page(
        f"{note}\nStandard errors {min(errors):.1f} to {max(errors):.1f} points.",
        used,
        ["", *short(used, presets, names)],
    )
