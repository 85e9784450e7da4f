"""The runs of a sweep: one after another with graph and images in common, or side by side on a pool."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from datafree import pipeline
from datafree.app.origin import write_command
from datafree.app.progress import ESTIMATING, job_progress
from datafree.app.unfinished import Interrupted, alone_with, part_of, unfinished_work
from datafree.app.watched import compress_watched
from datafree.execution import one_thread, serial
from datafree.models import LIBRARIES, from_bytes, to_bytes
from datafree.recipe import Recipe, SignalRecipe
from datafree.records import InputRange
from datafree.run import EFFORTS, Run, with_estimate
from datafree.sharing import Sharing, sharing
from datafree.signals import signal_kind

EFFORT = "brief"  # of each estimate
Pool = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]  # of layers or of whole runs


@dataclass(frozen=True, eq=False)
class Network:
    """What is swept over. arguments: of the command line, which name it; given: mean and std of its input, if known."""

    name: str
    model: nn.Module
    example: Tensor | tuple[Tensor, ...]
    arguments: tuple[str, ...]
    given: InputRange | None
    seed: int

    @cached_property
    def as_bytes(self) -> bytes | None:
        """Of the network, for workers; None = it cannot be sent, or its class is in a module that they may not find."""
        library, colon, _ = self.name.partition(":")
        return to_bytes(self.model) if not colon or library in LIBRARIES else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "model": None, "as_bytes": self.as_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, model=from_bytes(state["as_bytes"]))


@dataclass(frozen=True)
class Asked:
    """A recipe, and what it is called on the command line."""

    given: str
    recipe: Recipe


@dataclass(frozen=True, eq=False)
class Sweep:
    """Recipes of one network, and the folder of their runs."""

    network: Network
    recipes: Mapping[str, Asked]
    out: Path

    def finished(self) -> dict[str, Run]:
        places = {name: self.out / name for name in self.recipes}
        return {name: Run.load(place) for name, place in places.items() if (place / "summary.json").is_file()}


@dataclass(frozen=True)
class RunJob:
    """One run, with all that it takes to make it elsewhere.

    donor: name of a run with the same signal, whose images are taken, and that run; None = they are made.
    """

    sweep: Sweep
    recipe: str
    donor: tuple[str, Run] | None

    @property
    def name(self) -> str:
        return f"{self.sweep.network.name}, {self.recipe}"

    @property
    def place(self) -> Path:
        return self.sweep.out / self.recipe

    @property
    def stays_here(self) -> bool:
        """Whether it was begun in this process, or its network cannot be sent."""
        return part_of(self.place).exists() or self.sweep.network.as_bytes is None

    def save(self, run: Run) -> None:
        given = ["--images", str(self.sweep.out / self.donor[0])] if self.donor else []
        run.save(self.place)
        asked = ["--recipe", self.sweep.recipes[self.recipe].given, *given, "--out", str(self.place)]
        write_command(self.place, ["compress", *self.sweep.network.arguments, *asked])


def compress_all(sweeps: Sequence[Sweep], pool: Pool) -> list[dict[str, Run]]:
    """Compress by each recipe that is not done yet; images that one run made serve all that ask for the same.

    Runs that wait for no other's images are items of the pool, each on one thread. A run by itself has its layers
    there.
    """
    done, shared = {sweep: sweep.finished() for sweep in sweeps}, {sweep: sharing() for sweep in sweeps}
    while jobs := [job for sweep, runs in done.items() for job in ready(sweep, runs)]:
        here = jobs if pool is serial or len(jobs) == 1 else [job for job in jobs if job.stays_here]
        made = ((job, _here(job, pool, shared[job.sweep])) for job in here[:1]) if here else _side_by_side(jobs, pool)
        for job, run in made:
            done[job.sweep][job.recipe] = run
    return [{name: runs[name] for name in sweep.recipes} for sweep, runs in done.items()]


def ready(sweep: Sweep, done: Mapping[str, Run]) -> list[RunJob]:
    """Runs that need no images which another run of the sweep is yet to make."""
    jobs: list[RunJob] = []
    awaited: list[SignalRecipe] = []
    for name, recipe in ((name, asked.recipe) for name, asked in sweep.recipes.items() if name not in done):
        alike = [n for n, run in done.items() if run.recipe.signal == recipe.signal]
        if recipe.signal in awaited:
            continue
        if signal_kind(recipe.signal).keeps_images and not alike:
            awaited.append(recipe.signal)
        donor = next((n for n in alike if done[n].images), None)
        jobs.append(RunJob(sweep, name, (donor, done[donor]) if donor else None))
    return jobs


def _here(job: RunJob, pool: Pool, shared: Sharing) -> Run:
    network = job.sweep.network
    with (
        unfinished_work(job.place, restart=False) as folder,
        job_progress(f"{job.name}: ", after={ESTIMATING: EFFORTS[EFFORT].passes}) as progress,
    ):
        run = compress_watched(
            progress, network.model, job.sweep.recipes[job.recipe].recipe, network.example, seed=network.seed,
            pool=pool, images=job.donor and job.donor[1], effort=EFFORT, resume=folder, on_range=network.given,
            shared=shared,
        )  # fmt: skip
        job.save(run)
    return run


def _side_by_side(jobs: Sequence[RunJob], pool: Pool) -> Iterator[tuple[RunJob, Run]]:
    """Each run is kept once those before it are; others are begun anew the next time, if it stops."""
    with ExitStack() as stack, job_progress() as progress, _what_is_kept(), redirect_stdout(sys.stderr):
        for job in jobs:
            stack.enter_context(alone_with(job.place))
        for job, run in progress.track(zip(jobs, pool(_made, jobs), strict=True), "runs side by side", len(jobs)):
            job.save(run)
            yield job, run


@contextmanager
def _what_is_kept() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("finished runs are kept: the same command goes on from there") from None


def _made(job: RunJob) -> Run:
    network, recipe = job.sweep.network, job.sweep.recipes[job.recipe].recipe
    with one_thread():
        run = pipeline.compress(
            network.model, recipe, network.example, seed=network.seed, images=job.donor and job.donor[1],
            on_range=network.given, progress=False,
        )  # fmt: skip
        return with_estimate(run, effort=EFFORT)
