"""A bar for those who wait in a terminal or a notebook."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from datafree.execution import OnStep, ignore_steps
from datafree.records import LayerResult

OnDone = Callable[[LayerResult], None]


def ignore(result: LayerResult) -> None:
    """The `on_done` of someone who does not watch."""


@contextmanager
def watched(on_step: OnStep, on_done: OnDone, *, shown: bool | None) -> Iterator[OnStep]:
    """The `on_step`, which also moves a bar on stderr that is gone in the end.

    Args:
        shown: whether there is one; None = where stderr is a terminal, or in a notebook, and nobody watches yet.
    """
    is_watched = (on_step, on_done) != (ignore_steps, ignore)
    if shown is False or (shown is None and is_watched):
        yield on_step
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    is_seen = shown or console.is_terminal or console.is_jupyter
    with Progress(console=console, transient=True, disable=not is_seen) as bar:
        task = bar.add_task("reading the network", total=None)

        def step(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)
            on_step(what, done, total)

        yield step
