"""Compress trained networks in many ways and measure what each loses: the rows of zoo.py, prune.py and others."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.networks.made_images import Images, images_made
from bench.networks.real_images import Real
from bench.networks.trained import NETWORKS, Networks, open_networks
from bench.rows import add_missing, finished, rows_on_file
from datafree import Recipe, compress, evaluate
from datafree.signals import signal_kind

Key = tuple[str, str, str, int, str]


@dataclass(frozen=True)
class Row:
    """One compression, evaluated. Accuracies are percent, `lost` is points, `seconds` are of compress()."""

    network: str
    preset: str
    row: str
    seed: int
    num_images: int
    float_top1: float
    top1: float
    lost: float
    lost_error: float
    agreement: float
    bytes_ratio: float
    seconds: float
    image_seconds: float = 0.0  # of making the images, once for all recipes of a network and seed
    images_commit: str = ""  # that made them
    threads: int = 1
    settings: str = ""  # more than the row's own; such rows are in no table
    commit: str = ""

    @property
    def key(self) -> Key:
        return (self.network, self.preset, self.row, self.seed, self.settings)

    def __str__(self) -> str:
        return (
            f"{self.network} {self.preset} {self.row} seed {self.seed}: top-1 {self.top1:.1f} of {self.float_top1:.1f} "
            f"% (lost {self.lost:.1f} ± {self.lost_error:.1f} points, {self.num_images} images), agreement "
            f"{self.agreement:.1f} %, {self.seconds:.1f} s"
        )


@dataclass(frozen=True)
class Way:
    """A column of a table: settings on top of the preset's, the real images it is given, whether a seed matters."""

    settings: tuple[str, ...] = ()
    real: Real | None = None
    random: bool = True


@dataclass(frozen=True)
class Cell:
    """One row to be: a preset of the package under the name the table has for it."""

    preset: str
    row: str
    way: Way
    seed: int
    recipe: str


@dataclass(frozen=True)
class Subject:
    """A network under measurement, loaded when it is needed."""

    zoo: Networks
    name: str
    count: int  # of images evaluated on

    @cached_property
    def model(self) -> nn.Module:
        return self.zoo.load(self.name)

    @cached_property
    def data(self) -> list[tuple[Tensor, Tensor]]:
        x, y = self.zoo.images(self.name, self.count)
        return list(zip(x.split(100), y.split(100), strict=True))


def references(all_of: Iterable[Real]) -> dict[str, Way]:
    """Reference rows as columns."""
    return {real.name: Way(real.settings, real) for real in all_of}


def cells(
    network: str, presets: Iterable[str], ways: Mapping[str, Way], seeds: list[int], blank: Callable[[str, str], str]
) -> Iterator[Cell]:
    """Every preset in every way, once for each seed that makes a difference.

    Args:
        blank: why a preset has no row of a name; "" where it has.
    """
    for preset in presets:
        for name, way in ways.items():
            if not blank(preset, name) and not (way.real and way.real.missing(network)):
                once = not way.random or (way.real and way.real.is_all(network))
                yield from (Cell(preset, name, way, seed, preset) for seed in (seeds[:1] if once else seeds))


def never(preset: str, name: str) -> str:
    """The `blank` of a table that could be full."""
    return ""


def fill_table(
    options: argparse.Namespace,
    bench: str,
    ways: Mapping[str, Way],
    page: Callable[[Path], str],
    blank: Callable[[str, str], str] = never,
) -> None:
    """`fill` with every preset, row and seed asked for."""
    chosen = {name: ways[name] for name in options.rows}
    fill(options, bench, lambda network: cells(network, options.presets, chosen, options.seeds, blank), page)


def fill(
    options: argparse.Namespace, bench: str, cells_of: Callable[[str], Iterable[Cell]], page: Callable[[Path], str]
) -> None:
    """Measure the cells of every network asked for, but those on file that current code made; write the bench's page.

    Args:
        cells_of: the rows a network should have; asked for the next one when the last one is on file.
        page: what the rows in a folder say.
    """
    zoo, settings = open_networks(options), " ".join(options.set)
    for network in options.networks if zoo else ():
        subject = Subject(zoo, network, min(options.images or NETWORKS[network], NETWORKS[network]))
        done = set() if options.again else finished(written(options.out, bench, settings), subject.count)
        asked = (
            ((network, cell.preset, cell.row, cell.seed, settings), partial(measure, subject, cell, options))
            for cell in cells_of(network)
        )
        add_missing(options.out / f"{bench}.jsonl", asked, done)
    if written(options.out, bench):
        (options.out / f"{bench}.md").write_text(page(options.out))


def written(folder: Path, bench: str, settings: str = "") -> list[Row]:
    """All rows of a bench on file, the last one of each key; those with these settings of --set."""
    rows = rows_on_file([folder / f"{bench}.jsonl"], Row, lambda r: r.key)
    return [r for r in rows if r.settings == settings]


def measure(subject: Subject, cell: Cell, options: argparse.Namespace) -> Row:
    """Compress once and evaluate."""
    recipe = Recipe.preset(cell.recipe).updated([*cell.way.settings, *options.set])
    example, made, images = subject.data[0][0][:1], Images((), 0, 0.0), None
    if cell.way.real:
        images = (cell.way.real.draw(subject.zoo, subject.name, seed=cell.seed),)
    elif signal_kind(recipe.signal).keeps_images:
        made = images_made(subject.name, subject.model, recipe, example, seed=cell.seed, cache=options.cache)
        images = made.images
    start = time.perf_counter()
    run = compress(subject.model, recipe, example, seed=cell.seed, images=images)
    seconds = time.perf_counter() - start
    found = evaluate(run, subject.data)
    return Row(
        subject.name, cell.preset, cell.row, cell.seed, found.num_images, found.float_top1, found.top1, found.lost,
        found.lost_error, found.agreement, run.summary.bytes / run.summary.float_bytes, round(seconds, 1),
        round(made.seconds, 1), made.commit, torch.get_num_threads(), " ".join(options.set),
    )  # fmt: skip
