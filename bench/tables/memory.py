"""Peak memory of compressing large networks beside what they should take, and whether time is linear in their size.

    python -m bench.tables.memory                        # an hour or two; rows of this commit are not made again
    python -m bench.tables.memory --parts limit --plot   # and docs/pictures/memory.svg

Every row is measured in a process of its own, on one thread, with glibc's own settings, under a limit with those of the
command line. Weights are random, BatchNorm's statistics those of a batch of noise. Before it is measured, the process
compresses a small network: what Python, torch and everything imported takes is there by then, and is not counted.
Writes bench/results/memory.jsonl.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import fx, nn

from bench.networks.random_weights import random_network
from bench.rows import RESULTS, ROOT, STARTED_AT, append_row, commits_note, mark, newest, rows_on_file
from bench.tables import markdown
from datafree import Recipe, compress, load_model
from datafree import graph as g
from datafree.app.allocator import give_back_freed_memory
from datafree.execution import give_back_memory
from datafree.signals import images_asked, images_at_once
from datafree.solve.moments import block_size

MB = 2**20
MINUTES = 12  # after which a measurement is stopped
EVERY = 0.005  # seconds between two looks
NOISE = 4  # images of the batch that BatchNorm remembers
TENSOR, FOUR = "w8a8-tensor", "w4a8"
FILE = RESULTS / "memory.jsonl"
STYLE: dict[Any, Any] = {"svg.hashsalt": "datafree", "font.size": 11, "svg.fonttype": "none"}


@dataclass(frozen=True)
class Asked:
    """One measurement. limit: MB that the whole process may take, None = all it needs; steps: of images."""

    network: str
    side: int
    preset: str
    limit: int | None = None
    steps: int = 4


@dataclass(frozen=True)
class Row(Asked):
    """What came out; bytes but where it says MB.

    weights, moments, activations: what a compression should take, see the page. base: of Python, torch and imports.
    peak: the most that was resident, over the base. anonymous: the same without files; phases: of every phase.
    line: where the code was, at most.
    """

    layers: int = 0
    macs: int = 0
    weights: int = 0
    moments: int = 0
    activations: int = 0
    base: int = 0
    peak: int = 0
    anonymous: int = 0
    phases: dict[str, int] = field(default_factory=dict)
    line: str = ""
    cpu_seconds: float = 0.0
    finished: bool = True
    commit: str = ""

    @property
    def key(self) -> tuple[Any, ...]:
        return _key(self)

    @property
    def bound(self) -> int:
        return self.weights + self.moments + self.activations


def _key(asked: Asked) -> tuple[Any, ...]:
    return asked.network, asked.side, asked.preset, asked.limit, asked.steps


LARGE = ("torchvision:resnet152", "torchvision:wide_resnet101_2", "timm:efficientnet_b7", "timm:convnext_large")
DEPTHS = tuple(f"torchvision:resnet{n}" for n in (18, 34, 50, 101, 152))
SIDES = (64, 96, 128, 192, 224)
PARTS: dict[str, tuple[Asked, ...]] = {
    "peak": tuple(Asked(name, 64, preset) for preset in (TENSOR, FOUR) for name in LARGE),
    "layers": tuple(Asked(name, 64, TENSOR) for name in DEPTHS),
    "pixels": tuple(Asked("torchvision:resnet18", side, TENSOR) for side in SIDES),
    "limit": (
        Asked("torchvision:resnet50", 224, TENSOR, 1300), Asked("timm:efficientnet_lite0", 224, TENSOR, 700),
        Asked("timm:efficientnet_b7", 224, TENSOR, 2000),
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--networks", nargs="+", help="only these")
    parser.add_argument("--plot", action="store_true", help="draw the rows on file, too")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what the process that measures is told
    options = parser.parse_args()
    if options.one:
        measure(Asked(**json.loads(options.one)))
        return
    done = {row.key for row in written() if row.commit == STARTED_AT}  # code that changes no result may change these
    asked = dict.fromkeys(item for part in options.parts for item in PARTS[part])
    for item in asked:
        if _key(item) not in done and (not options.networks or item.network in options.networks):
            row = _in_its_own_process(item)
            append_row(FILE, {name: value for name, value in asdict(row).items() if name != "commit"})
            print(row, flush=True)
    if options.plot:
        draw(newest(written()), ROOT / "docs" / "pictures" / "memory.svg")


def _in_its_own_process(asked: Asked) -> Row:
    command = [sys.executable, "-m", "bench.tables.memory", "--one", json.dumps(asdict(asked))]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=True)
    return Row(**json.loads(done.stdout.splitlines()[-1]))


def written(folder: Path = RESULTS) -> list[Row]:
    return rows_on_file([folder / FILE.name], Row, lambda row: row.key)


# ---- measuring


def measure(asked: Asked) -> None:
    """Compress one network and print the row; stopped after MINUTES, as far as it came."""
    torch.set_num_threads(1)
    if asked.limit is not None:
        give_back_freed_memory()
    recipe = Recipe.preset(asked.preset)
    recipe = recipe.updated([f"signal.steps={asked.steps}"]) if hasattr(recipe.signal, "steps") else recipe
    small = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    load_model(asked.network)
    compress(small.eval(), recipe, (1, 3, 8, 8), progress=False)
    gc.collect()
    give_back_memory()
    watch = Watch(asked)
    model = random_network(asked.network, images=NOISE, side=asked.side)
    watch.cpu = time.process_time()  # of the compression alone
    with tempfile.TemporaryDirectory() as folder:
        compress(
            model, recipe, (1, 3, asked.side, asked.side), check=watch.look_at, on_step=watch.begin, progress=False,
            memory=None if asked.limit is None else asked.limit * MB, resume=Path(folder) / "work",
        )  # fmt: skip
    watch.tell(finished=True)


class Watch:
    """Looks at this process from a thread: what it holds, and at which line."""

    def __init__(self, asked: Asked) -> None:
        self.asked, self.phase = asked, "capture"
        self.known: dict[str, Any] = {}
        self.phases: dict[str, int] = {}
        self.line, self.most = "", 0
        self.start, self.cpu = time.monotonic(), time.process_time()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins here
        now = resident()
        self.base, self.base_anonymous = now["VmRSS"], now["RssAnon"]
        self.thread_id = threading.main_thread().ident
        threading.Thread(target=self._look, daemon=True).start()

    def look_at(self, teacher: fx.GraphModule) -> None:
        """What the network should take, once it is captured."""
        recipe = Recipe.preset(self.asked.preset)
        count, (widest, computed) = images_asked(teacher, recipe.signal), g.numbers_held(teacher)
        seen = min(count, 64, images_at_once(teacher)) if hasattr(recipe.signal, "steps") else 0
        taps = {n: g.weight(teacher, layer)[0].numel() for n, layer in g.layers(teacher).items()}
        layers = g.layers(teacher).values()
        self.known = {
            "layers": len(taps),
            "macs": sum(g.layer_macs(teacher).values()),
            "weights": 4 * 4 * g.num_parameters(teacher),
            "moments": (3 if recipe.solve.sequential else 1)
            * max(
                8 * layer.groups * taps[layer.name] * block_size(taps[layer.name], layer.kernel_size)
                for layer in layers
            ),
            "activations": 4 * max(count * widest, seen * computed),
        }

    def begin(self, phase: str, step: int, steps: int) -> None:
        self.phase = phase

    def tell(self, *, finished: bool) -> None:
        """Print the row."""
        row = Row(
            **asdict(self.asked), **self.known, base=self.base, peak=resident()["VmHWM"] - self.base,
            anonymous=max(self.phases.values()), phases=dict(self.phases), line=self.line, finished=finished,
            cpu_seconds=time.process_time() - self.cpu,
        )  # fmt: skip
        print(json.dumps(asdict(row)), flush=True)

    def _look(self) -> None:
        while time.monotonic() - self.start < 60 * MINUTES:
            held = resident()["RssAnon"] - self.base_anonymous
            if held > self.phases.get(self.phase, 0):
                self.phases[self.phase] = held
                if held > self.most:
                    self.most, self.line = held, where(sys._current_frames().get(self.thread_id or 0))
            time.sleep(EVERY)
        self.tell(finished=False)
        os._exit(0)


def where(frame: FrameType | None) -> str:
    """The innermost two lines of the package, as "file:line < file:line"."""
    found: list[str] = []
    while frame is not None and len(found) < 2:
        path = Path(frame.f_code.co_filename)
        if "datafree" in path.parts:
            found.append(f"{path.name}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(found)


def resident() -> dict[str, int]:
    """VmRSS, RssAnon (without files) and VmHWM (the most of VmRSS) of this process, bytes."""
    found = re.findall(r"^(VmRSS|RssAnon|VmHWM):\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return {name: 1024 * int(size) for name, size in found}


# ---- page

NOTE = """Peak of resident memory, by the system's own high-water mark, over what the process holds before it: Python,
torch and imports (*base*). *Bound*: four float32 copies of the weights, the largest H of a layer in float64 (in
sequence H and C of all images and of both halves in float32, three times that), and the values of the images that are
on their way: the most that a walk holds at a time, of all images, or where images are moved all that a backward pass
reads, of those that it sees at a time, whichever is more. *Line*: where memory was at its peak, by a look every five
milliseconds. CPU seconds are of one thread, since the machine had other work; images, where a preset moves them,
were moved a few steps only."""


def page(folder: Path) -> str:
    """Peaks beside their bounds, limits, and how time grows."""
    rows = newest(written(folder))
    lines = [NOTE, "", commits_note(rows), *_peaks([r for r in rows if r.limit is None and r.side == 64])]
    limited = [r for r in rows if r.limit is not None]
    lines += _limits(limited) if limited else []
    return "\n".join([*lines, *_growth(rows)]) + "\n"


def _peaks(rows: list[Row]) -> list[str]:
    head = ("preset", "weights x 4, MB", "one H", "images on their way", "bound", "peak", "peak / bound", "line")
    body = [
        [
            _named(r), f"`{r.preset}`",
            *(f"{size / MB:.0f}" for size in (r.weights, r.moments, r.activations, r.bound, r.peak)),
            f"{r.peak / max(1, r.bound):.2f}{mark([r])}", r.line,
        ]
        for r in rows
    ]  # fmt: skip
    return ["\n## At 64 pixels\n", *markdown.grid(head, body), *_stopped(rows)]


def _limits(rows: list[Row]) -> list[str]:
    head = ("preset", "`--memory`, MB", "the whole process", "of it", "base", "without files", "line")
    body = [
        [
            f"{_named(r)}, {r.side}", f"`{r.preset}`", f"{r.limit}", f"{(r.base + r.peak) / MB:.0f}",
            f"{100 * (r.base + r.peak) / MB / (r.limit or 1):.0f} %{mark([r])}", f"{r.base / MB:.0f}",
            f"{r.anonymous / MB:.0f}", r.line,
        ]
        for r in rows
    ]  # fmt: skip
    return ["\n## Under a limit\n", *markdown.grid(head, body), *_stopped(rows)]


def _growth(rows: list[Row]) -> list[str]:
    """How CPU seconds grow with layers and with pixels."""
    lines = ["\n## Time\n"]
    for asked, of, unit in CURVES:
        found = [r for r in rows if r.key in {_key(item) for item in PARTS[asked]} and r.finished]
        if len(found) < 3:
            continue
        x, y = [of(r) for r in found], [r.cpu_seconds for r in found]
        told = [
            [f"{_named(r)}, {r.side}", f"{size:,.0f}", f"{r.cpu_seconds:.0f}"] for r, size in zip(found, x, strict=True)
        ]
        lines += [*markdown.grid((unit, "CPU seconds"), told), f"\nCPU seconds ~ ({unit})^{exponent(x, y):.2f}.\n"]
    return lines if len(lines) > 1 else []


def _stopped(rows: list[Row]) -> list[str]:
    """Which rows are of measurements that were stopped."""
    names = ", ".join(f"{_named(r)} `{r.preset}`" for r in rows if not r.finished)
    return [f"\nStopped after {MINUTES} minutes, as far as they came: {names}."] if names else []


def exponent(x: Iterable[float], y: Iterable[float]) -> float:
    """e of y ~ x^e, by least squares of the logarithms; 1 = linear."""
    return statistics.linear_regression([*map(math.log, x)], [*map(math.log, y)]).slope


CURVES: tuple[tuple[str, Callable[[Row], float], str], ...] = (
    ("layers", lambda r: r.layers, "layers"),
    ("layers", lambda r: r.macs / 1e6, "million multiply-adds"),
    ("pixels", lambda r: r.side**2, "pixels"),
)


def draw(rows: list[Row], path: Path) -> None:
    """Peak against bound, and CPU seconds against layers and pixels."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, 4.2), layout="constrained")
        first, *others = figure.subplots(1, 3)
        peaks = [r for r in rows if r.limit is None and r.finished]
        first.plot([r.bound / MB for r in peaks], [r.peak / MB for r in peaks], "o")
        first.axline((0, 0), slope=1, color="black", linewidth=0.8, linestyle="--")
        first.set(xlabel="bound, MB", ylabel="peak over the base, MB", title="peak against the bound")
        for axes, (asked, of, unit) in zip(others, (CURVES[0], CURVES[2]), strict=True):
            found = [r for r in rows if r.key in {_key(item) for item in PARTS[asked]} and r.finished]
            axes.plot([of(r) for r in found], [r.cpu_seconds for r in found], "o-")
            axes.set(xlabel=unit, ylabel="CPU seconds", title=f"time against {unit}")
        for axes in (first, *others):
            axes.set_xlim(0)
            axes.set_ylim(0)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None})


def _named(row: Row) -> str:
    return row.network.partition(":")[2]


if __name__ == "__main__":
    main()
