"""What several recipes of one network have in common: it is captured once, and images are made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, fx, nn

from datafree import graph as g
from datafree.execution import Execution
from datafree.graph import trace
from datafree.recipe import SignalRecipe
from datafree.records import InputRange, Stats
from datafree.signals import Signal, make_signal


@dataclass(frozen=True)
class Sharing:
    """Where `compress` has a network's graph and its signal from."""

    trace: Callable[[nn.Module, g.Example], fx.GraphModule] = trace
    make_signal: Callable[..., Signal] = make_signal


ALONE = Sharing()


def sharing() -> Sharing:
    """For compressions of one network, one after another, each to the bits that it has alone.

    The graph is that of the first. A signal is made again where its recipe, seed or range differ, or the network's
    weights after equalizing; images that were given are taken as they are.
    """
    graphs: list[fx.GraphModule] = []
    signals: dict[tuple[object, ...], Signal] = {}

    def trace_once(model: nn.Module, example: g.Example) -> fx.GraphModule:
        if not graphs:
            graphs.append(trace(model, example))
        return g.duplicate(graphs[0])

    def make_once(
        teacher: fx.GraphModule, stats: Stats, *, signal: SignalRecipe, seed: int,
        input_range: InputRange | None, images: tuple[Tensor, ...] | None, work: Execution,
    ) -> Signal:  # fmt: skip
        make = partial(make_signal, teacher, stats, signal=signal, seed=seed, input_range=input_range, work=work)
        if images is not None:
            return make(images=images)
        key = (signal, seed, input_range, work.device, work.room.size, g.fingerprint(teacher))
        if key not in signals:
            signals[key] = make()
        return signals[key]

    return Sharing(trace_once, make_once)
