"""How far a job is: one bar over all of it on a terminal or in a notebook, else a line every few seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from datafree.execution import SOLVING, ExpectedWork, OnPlan, OnStep, count_macs, ignore_plan, ignore_steps
from datafree.records import LayerResult

READING = "reading the network"
EVERY = 5.0  # seconds between two lines
REDRAWN = 0.25  # seconds between two looks of a bar
OVERHEAD = 1e9  # multiply-adds that take as long as reading one layer, or what solving it takes beside its own
SURE = 0.03  # of the whole, from which on time left is told
Item = TypeVar("Item")
OnDone = Callable[[LayerResult], None]


def ignore(result: LayerResult) -> None:
    """The `on_done` of someone who does not watch."""


@contextmanager
def watched(
    on_step: OnStep, on_plan: OnPlan, on_done: OnDone, *, shown: bool | None
) -> Iterator[tuple[OnStep, OnPlan]]:
    """`on_step` and `on_plan`, which also move a bar on stderr that is gone in the end.

    Args:
        shown: whether there is one; None = where stderr is a terminal, or in a notebook, and nobody watches yet.
    """
    is_watched = (on_step, on_plan, on_done) != (ignore_steps, ignore_plan, ignore)
    console = Console(stderr=True, markup=False, highlight=False)
    if shown is False or (shown is None and is_watched) or not (console.is_terminal or console.is_jupyter or shown):
        yield on_step, on_plan
        return
    with JobProgress(console=console) as progress:

        def step(what: str, done: int, total: int) -> None:
            progress.on_step(what, done, total)
            on_step(what, done, total)

        def plan(expected: ExpectedWork) -> None:
            progress.on_plan(expected)
            on_plan(expected)

        yield step, plan


class JobProgress:
    """Told of phases and steps, counts the multiply-adds that are spent, and shows what share of all they are.

    Args:
        label: in front of every phase.
        after: phases that follow those of the plan, in forward passes of one image.
        console: where the bar is, if that is a terminal or a notebook.
        say: what else is told of it every so many seconds; None = nobody.
        begun: when it began, as `time.monotonic` has it; None = when it is entered.
    """

    def __init__(
        self,
        label: str = "",
        after: Mapping[str, int] | None = None,
        *,
        console: Console,
        say: Callable[[str], None] | None = None,
        every: float | None = None,
        begun: float | None = None,
    ) -> None:
        self.label, self.after, self.console, self.say = label, after or {}, console, say
        self.every = EVERY if every is None else every
        self._begun = begun
        self._ahead: dict[str, float] = {}  # by phase, in multiply-adds
        self._past = 0.0  # of phases that are over
        self._what, self._steps, self._since = READING, (0, 0), 0
        self._stack, self._over = ExitStack(), threading.Event()

    def __enter__(self) -> JobProgress:
        self._start = time.monotonic() if self._begun is None else self._begun
        self._counter = self._stack.enter_context(count_macs())
        if self.console.is_terminal or self.console.is_jupyter:
            left = TextColumn("{task.fields[left]}", markup=False)
            columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn()
            bar = Progress(*columns, TimeElapsedColumn(), left, console=self.console, transient=True)
            self._bar: Progress | None = self._stack.enter_context(bar)
            self._task = bar.add_task(self._text(), total=None, left="")
        else:
            self._bar = None
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._watcher.join()
        self._stack.close()

    # ---- what it is told

    def on_plan(self, expected: ExpectedWork) -> None:
        """What there is to do, for `compress`."""
        phases = {**expected.phases, **{what: passes * expected.forward for what, passes in self.after.items()}}
        self._past = OVERHEAD * expected.num_layers  # it is read
        self._ahead = {what: float(macs) for what, macs in phases.items()}
        self._ahead[SOLVING] += OVERHEAD * expected.num_layers
        self._since = self._counter.macs

    def on_step(self, what: str, done: int, total: int) -> None:
        """What is being done, for `compress`; a name that is not of the plan is a part of the phase under way."""
        if what != self._what and what in self._ahead:
            while self._ahead and next(iter(self._ahead)) != what:  # those before it are over, and were worth theirs
                self._past += self._ahead.pop(next(iter(self._ahead)))
            self._since = self._counter.macs
        self._what, self._steps = what, (done, total)
        if self._bar is not None:
            self._bar.update(self._task, description=self._text())

    def track(self, items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
        """The same items, counted."""
        self.on_step(what, 0, total)
        for done, item in enumerate(items, 1):
            yield item
            self.on_step(what, done, total)

    # ---- what it shows

    @property
    def share(self) -> float | None:
        """Of the whole, 0 to 1; None = not known."""
        done, total = self._steps
        if not self._ahead:
            return done / total if total else None
        phase, expected = next(iter(self._ahead.items()))
        spent = self._counter.macs - self._since + (OVERHEAD * done if phase == SOLVING else 0)
        inside = done / total if total and phase != SOLVING else spent / expected
        return min(0.99, (self._past + min(1.0, inside) * expected) / (self._past + sum(self._ahead.values())))

    def _watch(self) -> None:
        wait = REDRAWN if self._bar is not None else max(0.0, self.every - (time.monotonic() - self._start))
        while not self._over.wait(wait):
            wait = REDRAWN if self._bar is not None else self.every
            share = self.share
            if self._bar is not None:
                total = None if share is None else 1.0
                self._bar.update(
                    self._task, description=self._text(), total=total, completed=share or 0.0, left=self._left(share)
                )
            elif self.say is not None:
                told = "" if share is None else f", {100 * share:.0f} % of all"
                self.say(f"{self._text()}{told}, {duration(time.monotonic() - self._start)}{self._left(share)}")

    def _text(self) -> str:
        done, total = self._steps
        return f"{self.label}{self._what}{f' {done}/{total}' if total > 1 else ''}"

    def _left(self, share: float | None) -> str:
        if share is None or share < SURE:
            return ""
        return f", about {duration((time.monotonic() - self._start) * (1 - share) / share)} left"


def duration(seconds: float) -> str:
    """9 s, 1:05 min, 2:10 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60}:{whole % 60:02} min" if whole < 3600 else f"{whole // 3600}:{whole % 3600 // 60:02} h"
