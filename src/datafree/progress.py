"""A bar for those who wait in a terminal or a notebook."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from datafree.execution import OnStep, ignore_steps
from datafree.records import LayerResult

OnDone = Callable[[LayerResult], None]
COMPRESSED = (nn.modules.conv._ConvNd, nn.Linear)


def ignore(result: LayerResult) -> None:
    """The `on_done` of someone who does not watch."""


@contextmanager
def watched(
    model: nn.Module, on_step: OnStep, on_done: OnDone, *, shown: bool | None
) -> Iterator[tuple[OnStep, OnDone]]:
    """The two callbacks, which also move a bar on stderr that is gone in the end.

    Args:
        shown: whether there is one; None = where stderr is a terminal, or in a notebook, and nobody watches yet.
    """
    is_watched = (on_step, on_done) != (ignore_steps, ignore)
    if shown is False or (shown is None and is_watched):
        yield on_step, on_done
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    is_seen = shown or console.is_terminal or console.is_jupyter
    with Progress(console=console, transient=True, disable=not is_seen) as bar:
        task = bar.add_task("reading the network", total=None)
        num_layers = sum(isinstance(module, COMPRESSED) for module in model.modules()) or None
        solved: list[str] = []

        def step(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)
            on_step(what, done, total)

        def layer_done(result: LayerResult) -> None:
            solved.append(result.name)
            bar.update(task, description="solving layers", completed=len(solved), total=num_layers)
            on_done(result)

        yield step, layer_done
