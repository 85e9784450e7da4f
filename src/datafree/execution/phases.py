"""The parts of a compression that take long, by the names that a watcher is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

MAKING_IMAGES = "making images"
CHOOSING = "choosing bits and zeros"
SOLVING = "solving layers"
DISTILLING = "distilling"

OnStep = Callable[[str, int, int], None]
"""Called while long work goes on: what is being done, steps done, steps in all."""


@dataclass(frozen=True)
class ExpectedWork:
    """What will be spent.

    forward: multiply-adds of one image through the network.
    num_layers: that are solved; each takes a while beside its multiply-adds.
    phases: multiply-adds of every phase, in the order in which they come.
    memory: bytes on top of what the process takes already, at most.
    """

    forward: int
    num_layers: int
    phases: Mapping[str, int]
    memory: int = 0


OnPlan = Callable[[ExpectedWork], None]
"""Called once, as soon as it is known what there is to do."""


def ignore_steps(what: str, done: int, total: int) -> None:
    """The `on_step` of someone who does not watch."""


def ignore_plan(expected: ExpectedWork) -> None:
    """The `on_plan` of someone who does not watch."""
