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
from bench.networks.trained import Networks, open_networks
from bench.rows import add_missing, finished, rows_on_file
from datafree import Recipe, compress, evaluate
from datafree.run.evaluate import Evaluation
from datafree.signals import signal_kind

Key = tuple[str, str, str, int, str, str]


@dataclass(frozen=True)
class Row:
    """One compression, evaluated. Accuracies are percent, `lost` is points, `seconds` are of compress().

    data: the images, where they are not the network's own; such rows are in no table. Without labels there is only
    agreement, and the other accuracies are None.
    """

    network: str
    preset: str
    row: str
    seed: int
    num_images: int
    float_top1: float | None
    top1: float | None
    lost: float | None
    lost_error: float | None
    agreement: float
    bytes_ratio: float
    seconds: float
    image_seconds: float = 0.0  # of making the images, once for all recipes of a network and seed
    images_commit: str = ""  # that made them
    threads: int = 1
    settings: str = ""  # more than the row's own; such rows are in no table
    data: str = ""
    commit: str = ""

    @property
    def key(self) -> Key:
        return (self.network, self.preset, self.row, self.seed, self.settings, self.data)

    def __str__(self) -> str:
        what = f"{self.network} {self.preset} {self.row} seed {self.seed}"
        if self.lost is None:
            told = f"agreement {self.agreement:.1f} % on {self.num_images} {self.data}"
            return f"{what}: {told}, {self.seconds:.1f} s; no labels, so top-1 is not known"
        images = f"{self.num_images} images" + (f" of {self.data}" if self.data else "")
        return (
            f"{what}: top-1 {self.top1:.1f} of {self.float_top1:.1f} % (lost {self.lost:.1f} ± {self.lost_error:.1f} "
            f"points, {images}), agreement {self.agreement:.1f} %, {self.seconds:.1f} s"
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


def as_it_is(model: nn.Module) -> nn.Module:
    """The `change` of a bench that measures networks as they are."""
    return model


@dataclass(frozen=True)
class Subject:
    """A network under measurement, loaded when it is needed, and changed where a bench measures a changed copy."""

    zoo: Networks
    name: str
    count: int  # of images evaluated on
    change: Callable[[nn.Module], nn.Module] = as_it_is

    @property
    def measured_on(self) -> str:
        """Images that take the place of its own; "" where none do."""
        return self.zoo.measured_on(self.name)

    @property
    def has_labels(self) -> bool:
        return self.zoo.has_labels(self.name)

    @cached_property
    def model(self) -> nn.Module:
        return self.change(self.zoo.load(self.name))

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
    change: Callable[[nn.Module], nn.Module] = as_it_is,
) -> None:
    """`fill` with every preset, row and seed asked for."""
    chosen = {name: ways[name] for name in options.rows}
    fill(options, bench, lambda s: cells(s.name, options.presets, chosen, options.seeds, blank), page, change)


def fill(
    options: argparse.Namespace,
    bench: str,
    cells_of: Callable[[Subject], Iterable[Cell]],
    page: Callable[[Path], str],
    change: Callable[[nn.Module], nn.Module] = as_it_is,
) -> None:
    """Measure the cells of every network asked for, but those on file that current code made; write the bench's page.

    Args:
        cells_of: the rows a network should have; asked for the next one when the last one is on file.
        page: what the rows in a folder say.
        change: of a network before it is measured; images made for the changed copy need an `options.cache` of its own.
    """
    zoo, settings = open_networks(options), " ".join(options.set)
    for network in options.networks:
        subject = Subject(zoo, network, zoo.num_images(network, options.images), change)
        on_file = written(options.out, bench, settings, subject.measured_on)
        done = set() if options.again else finished(on_file, subject.count)
        also = (settings, subject.measured_on)
        asked = (
            ((network, cell.preset, cell.row, cell.seed, *also), partial(measure, subject, cell, options))
            for cell in possible(cells_of(subject), subject)
        )
        add_missing(options.out / f"{bench}.jsonl", asked, done)
    if written(options.out, bench):
        (options.out / f"{bench}.md").write_text(page(options.out))


def possible(asked: Iterable[Cell], subject: Subject) -> Iterator[Cell]:
    """The cells without those that take real images, where none are left beside those evaluated on; a line says so."""
    left_out: dict[str, None] = {}
    for cell in asked:
        if cell.way.real and not subject.zoo.has_spare(subject.name, subject.count):
            left_out[cell.row] = None
        else:
            yield cell
    if left_out:
        print(f"skipped: {subject.name}, {', '.join(left_out)}: too few images beside those evaluated on", flush=True)


def written(folder: Path, bench: str, settings: str = "", data: str = "") -> list[Row]:
    """All rows of a bench on file, the last one of each key; those with these settings of --set, on these images.

    Args:
        data: what took the place of a network's own images; "" = nothing did.
    """
    rows = rows_on_file([folder / f"{bench}.jsonl"], Row, lambda r: r.key)
    return [r for r in rows if (r.settings, r.data) == (settings, data)]


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
        subject.name, cell.preset, cell.row, cell.seed, found.num_images, *top1_of(found, subject.has_labels),
        found.agreement, run.summary.bytes / run.summary.float_bytes, round(seconds, 1), round(made.seconds, 1),
        made.commit, torch.get_num_threads(), " ".join(options.set), subject.measured_on,
    )  # fmt: skip


def top1_of(found: Evaluation, has_labels: bool) -> tuple[float | None, float | None, float | None, float | None]:
    """float_top1, top1, lost and lost_error of a row; None without labels."""
    return (found.float_top1, found.top1, found.lost, found.lost_error) if has_labels else (None, None, None, None)
