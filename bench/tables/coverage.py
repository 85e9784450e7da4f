"""Networks of timm and torchvision through everything: the same function and students that run, or refused by name.

    python -m bench.tables.coverage
    python -m bench.tables.coverage --networks timm:resnet18 torchvision:alexnet

Weights are random, BatchNorm has statistics of smooth random images. Every network runs in a process of its own, with
limits of memory and time. Writes JSON lines (bench/results/coverage.jsonl) and bench/results/coverage.md; networks
there that current code made are not examined again.
"""

from __future__ import annotations

import argparse
import gc
import math
import multiprocessing
import re
import resource
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from bench.rows import RESULTS, add_missing, commits_note, is_row_current, mark, rows_on_file
from bench.tables.coverage_checks import RECIPES, Found, Mismatch, Refused, examine
from bench.tables.coverage_networks import NETWORKS
from datafree import load_model
from datafree.graph import trace

FILE = "coverage"
MEMORY, TIME = 5 * 2**30, 900.0  # bytes, seconds
LONGEST = 300  # characters of a reason
PLACES = re.compile(r"/\S*/(?=site-packages/|tests/|bench/)")  # of this machine
EXACT, REFUSED, FAILED = "exact", "refused", "failed"
FIRST = ("network", "pixels", "layers", "BatchNorms", "captured", "folded", "equalized")
FILES = ("its file", "read from a float file", "written by")
NOTE = f"""Networks of timm and torchvision with random weights, at 64 x 64 pixels or the least they take. Before
training BatchNorm has mean 0 and variance 1 and branches may add zero; here gammas are drawn from 0.5 to 1.5,
BatchNorm's statistics are those of 16 procedural images, and scales of branches are not zero.

*exact*: the captured graph, the graph with BatchNorm folded and the equalized one (AFCLE, every vector) give the
network's outputs up to float rounding, at another batch size than they were captured at; students of
{", ".join(f"`{name}`" for name in RECIPES)} (8 images, nearest rounding, zeros by magnitude: what is asked here is
whether they run) keep the teacher exact, run and give finite outputs, and say which layers are under 15 dB at 8 bits;
the file of the `w8a8` student computes the same in ONNX Runtime; and a float ONNX file of the network, written by
PyTorch's exporter with BatchNorm kept (or, where that fails, by this package), is read back as the same function,
captured, and compressed at `w8a8`. Float rounding is 1e-4 of the output's range, or four times what float32 itself is
off by against float64, where that is more. *refused*: what the one line says, before anything was done. Anything else
is *failed*. Differences are the largest ones, as shares of the output's range; dB is student against float network on
other images than layers were solved on."""


@dataclass(kw_only=True)
class CoverageRow(Found):
    """One network; said: exact, or refused or failed and why."""

    network: str
    said: str
    seconds: float = 0.0
    commit: str = ""

    @property
    def kind(self) -> str:
        return self.said.partition(":")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--again", action="store_true", help="also those that were not exact")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    done = {r.network for r in rows(options.out) if is_row_current(r) and not (options.again and r.kind != EXACT)}
    _warm()
    asked = [(name, partial(examined, name)) for name in options.networks]
    add_missing(options.out / f"{FILE}.jsonl", asked, done)
    (options.out / f"{FILE}.md").write_text(page(options.out))


def rows(folder: Path) -> list[CoverageRow]:
    return rows_on_file([folder / f"{FILE}.jsonl"], CoverageRow, lambda row: row.network)


# ---- one process a network


def _warm() -> None:
    """Import what every process needs, once, before they part."""
    model, example = load_model("timm:test_resnet")
    trace(model, example)
    gc.freeze()


def examined(name: str, *, memory: int = MEMORY, seconds: float = TIME) -> CoverageRow:
    """Examine a network in a process of its own, which may end as it will."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process, start = context.Process(target=_work, args=(name, memory, theirs)), time.monotonic()
    process.start()
    theirs.close()
    row, place = None, "start"
    try:
        while row is None and ours.poll(max(0.0, seconds - (time.monotonic() - start))):
            told = ours.recv()
            row, place = (told, place) if isinstance(told, CoverageRow) else (None, told)
        reason = f"more than {seconds:g} s"
    except EOFError:
        process.join()
        reason = f"the process ended with exit code {process.exitcode}"
    process.kill()
    process.join()
    said = f"{FAILED}: {place}: {reason}"
    return row or CoverageRow(network=name, said=said, seconds=round(time.monotonic() - start, 1))


def _work(name: str, memory: int, out: Connection) -> None:
    """Examine, and send where that is and then the row."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    places, found, start = ["start"], Found(), time.process_time()

    def at(place: str) -> None:
        places.append(place)
        out.send(place)

    try:
        examine(name, found, at)
        said = EXACT
    except Refused as error:
        said = f"{REFUSED}: {places[-1]}: {error}"
    except Mismatch as error:
        said = f"{FAILED}: {places[-1]}: {error}"
    except Exception as error:  # whatever it is, it is a row
        said = f"{FAILED}: {places[-1]}: {type(error).__name__}: {' '.join(str(error).split())}"
    said = PLACES.sub("", said)[:LONGEST]
    seconds = round(time.process_time() - start, 1)
    out.send(CoverageRow(network=name, said=said, seconds=seconds, **asdict(found)))


# ---- the page


def page(folder: Path) -> str:
    """How many, what was not exact, and one row a network."""
    made = rows(folder)
    lines = [NOTE, "", summary(made), ""]
    if others := [row for row in made if row.kind != EXACT]:
        lines += ["| network | |", "|---|---|", *(f"| {_name(r)} | {_cell(r.said)}{mark([r])} |" for r in others), ""]
    columns = [*FIRST, *RECIPES, *FILES]
    lines += [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [_line(row) for row in made if row.kind == EXACT]
    return "\n".join([*lines, "", commits_note(made), ""])


def summary(made: Iterable[CoverageRow]) -> str:
    """Counts, and shares of all networks."""
    kinds = [row.kind for row in made]
    counts = {kind: kinds.count(kind) for kind in (EXACT, REFUSED, FAILED)}
    shares = [f"{counts[kind]} {kind} ({100 * counts[kind] / max(1, len(kinds)):.1f} %)" for kind in counts]
    return f"{len(kinds)} networks: {', '.join(shares)}."


def _line(row: CoverageRow) -> str:
    off = [f"{value:.0e}" if value is not None else "-" for value in (row.captured, row.folded, row.equalized)]
    db = [_decibel((row.student_db or {}).get(preset)) for preset in RECIPES]
    read = "-" if row.read is None else f"{row.read:.0e}"
    sizes = [str(row.side), str(row.num_layers), str(row.num_batchnorms)]
    cells = [_name(row), *sizes, *off, *db, _decibel(row.file_db), read, row.written_by + mark([row])]
    return f"| {' | '.join(cells)} |"


def _decibel(value: float | None) -> str:
    return "-" if value is None else "the same" if math.isinf(value) else f"{value:.0f} dB"


def _name(row: CoverageRow) -> str:
    return row.network.removeprefix("timm:")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
