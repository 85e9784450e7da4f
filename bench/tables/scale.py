"""Layers as tasks of a Ray cluster: times and payloads of the jobs of one network, and runs on this machine.

    export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592    # all keep memory, as the command line
    python -m bench.tables.scale --runs jobs 0 2 0 2 1 4    # in this order; 0 = no Ray, in this process

The machine must be idle. Weights are random, BatchNorm's statistics those of a batch of noise. What more workers would
take is simulated from the jobs, when the page is rendered: jobs come from one process as fast as it makes them, move
over its link one after another, and run on the first worker that is free.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.networks.random_weights import random_network
from bench.rows import RESULTS, append_row, commits_note, mark
from bench.tables import markdown
from datafree import compress, on_ray, serial

MODEL, PRESET = "torchvision:resnet50", "w8a8-tensor"
BANDWIDTH = 1.25e9  # bytes a second: ten gigabits
CORES = 2  # of the machine the runs were on
WORKERS = (1, 2, 4, 8, 16, 64, 256, 1000)
FILE = RESULTS / "scale.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", default=["jobs", "0", "2", "0", "2", "1", "4"])
    torch.set_num_threads(1)
    model = random_network(MODEL, images=8, side=224)
    for asked in parser.parse_args().runs:
        row = measure_jobs(model) if asked == "jobs" else measure_run(model, int(asked))
        append_row(FILE, row)
        print({name: value for name, value in row.items() if name != "jobs"}, flush=True)


def measure_run(model: nn.Module, workers: int) -> dict[str, Any]:
    """Seconds of a compression, and of the start of the cluster before it."""
    start = time.perf_counter()
    pool = serial
    if workers:
        pool = on_ray(num_workers=workers)
        list(pool(abs, range(2 * workers)))
    begun = time.perf_counter()
    run = compress(model, PRESET, (1, 3, 224, 224), pool=pool, progress=False)
    seconds = time.perf_counter() - begun
    if workers:
        import ray

        ray.shutdown()
    digest = sum(float(layer.weight.double().sum()) for layer in run.layers)
    return {"workers": workers, "start": begun - start, "seconds": seconds, "weights": digest}


@dataclass(frozen=True)
class Job:
    """Seconds to make it ready to go and to do it, bytes that go to the worker and come back."""

    make: float
    solve: float
    bytes_in: int
    bytes_out: int


@dataclass(frozen=True)
class Work:
    """Jobs, and the seconds before the first is begun and after the last is done."""

    before: float
    jobs: tuple[Job, ...]
    after: float


def measure_jobs(model: nn.Module) -> dict[str, Any]:
    """What each layer's job takes, one after another, as if it went to another process."""
    stamps, jobs = [time.perf_counter()], []

    def lap() -> float:
        stamps.append(time.perf_counter())
        return stamps[-1] - stamps[-2]

    def pool(function: Callable, items: Iterable) -> Iterator:
        before = lap()
        for item in items:
            there = pickle.dumps((function, item))
            made = lap()
            apply, read = pickle.loads(there)
            back = pickle.dumps(apply(read))
            jobs.append((made, lap(), len(there), len(back)))
            yield pickle.loads(back)
            jobs[-1] = (jobs[-1][0] + lap(), *jobs[-1][1:])
        stamps[0] = before

    compress(model, PRESET, (1, 3, 224, 224), pool=pool, progress=False)
    return {"before": stamps[0], "jobs": jobs, "after": lap()}


# ---- simulation


def simulate(work: Work, workers: int, *, cores: float = math.inf, bandwidth: float = BANDWIDTH) -> float:
    """Seconds of the whole: list scheduling in the order of the jobs, twice as many under way as there are workers.

    Args:
        cores: that the process which makes jobs and its workers share, each running as long as the others do.
    """
    now, link, left = 0.0, 0.0, deque(work.jobs)
    making = work.before + left[0].make
    waiting: deque[tuple[float, float]] = deque()  # when a job has arrived, and how long it takes
    running: list[float] = []
    while left or waiting or running:
        while waiting and len(running) < workers and waiting[0][0] <= now:
            running.append(waiting.popleft()[1])
        is_making = bool(left) and len(waiting) + len(running) < 2 * workers
        pace = min(1.0, cores / max(1, len(running) + is_making))
        ends = [seconds / pace for seconds in (*running, *([making] if is_making else []))]
        arrives = [waiting[0][0] - now] if waiting and len(running) < workers else []
        step = min(ends + arrives)
        now, making = now + step, making - step * pace * is_making
        running = [seconds for seconds in (r - step * pace for r in running) if seconds > 1e-9]
        if is_making and making <= 1e-9:
            job = left.popleft()
            link = max(link, now) + job.bytes_in / bandwidth
            waiting.append((link, job.solve))
            making = left[0].make if left else 0.0
    return now + work.after


# ---- page


@dataclass(frozen=True)
class Made:
    """What made a row."""

    commit: str


def block(folder: Path) -> str:
    """The tables of docs/scale.md."""
    rows = [json.loads(line) for line in (folder / "scale.jsonl").read_text().splitlines()]
    work = work_of([row for row in rows if "jobs" in row][-1])
    runs = {n: [r for r in rows if r.get("workers") == n] for n in sorted({r["workers"] for r in rows if "start" in r})}
    made = [Made(row["commit"]) for row in rows]
    lines = [*_jobs(work), "", *_measured(work, runs), "", *_simulated(work), "", commits_note(made) + mark(made)]
    return "\n".join(lines) + "\n"


def work_of(row: dict[str, Any]) -> Work:
    return Work(row["before"], tuple(Job(*job) for job in row["jobs"]), row["after"])


def _jobs(work: Work) -> list[str]:
    columns = [
        ("made ready, s", [j.make for j in work.jobs]), ("solved, s", [j.solve for j in work.jobs]),
        ("sent, MB", [j.bytes_in / 1e6 for j in work.jobs]), ("sent back, MB", [j.bytes_out / 1e6 for j in work.jobs]),
    ]  # fmt: skip
    asked: list[tuple[str, Callable[[list[float]], float]]] = [
        (f"all {len(work.jobs)} jobs", sum), ("half of them at most", statistics.median), ("the largest", max)
    ]  # fmt: skip
    return markdown.grid(
        (title for title, _ in columns), ([name, *(f"{of(v):.2f}" for _, v in columns)] for name, of in asked)
    )


def _measured(work: Work, runs: dict[int, list[dict[str, Any]]]) -> list[str]:
    alone = statistics.median(r["seconds"] for r in runs[0])
    body = []
    for workers, found in runs.items():
        seconds, starts = ([r[name] for r in found] for name in ("seconds", "start"))
        told = statistics.median(seconds)
        foreseen = f"{simulate(work, workers, cores=CORES):.1f}" if workers else "-"
        every, begun = ", ".join(f"{s:.1f}" for s in seconds), f"{statistics.median(starts):.1f}" if workers else "-"
        with_start = f"{alone / (told + statistics.median(starts)):.2f}" if workers else "-"
        name = f"{workers} worker{'s' * (workers > 1)}" if workers else "no Ray"
        body.append([name, every, f"{alone / told:.2f}", begun, with_start, foreseen])
    return markdown.grid(("seconds", "faster", "start, s", "faster with it", "simulated, s"), body)


def _simulated(work: Work) -> list[str]:
    alone = work.before + sum(j.make + j.solve for j in work.jobs) + work.after
    body = []
    for workers in WORKERS:
        seconds, slow = simulate(work, workers), simulate(work, workers, bandwidth=BANDWIDTH / 10)
        body.append([f"{workers:,}", f"{seconds:.1f}", f"{alone / seconds:.2f}", f"{slow:.1f}"])
    return markdown.grid(("seconds", "faster", "seconds at 1 Gbit/s"), body)


if __name__ == "__main__":
    main()
