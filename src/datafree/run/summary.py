"""What a compression did and what it cost, from what its steps came to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from datafree.allocation import Allocation
from datafree.execution import peak_memory
from datafree.graph import described
from datafree.records import (
    ActivationBits,
    CoarseInput,
    Distilled,
    Equalization,
    InputRange,
    Mended,
    SignalSummary,
    Skipped,
    Slimmed,
    Stats,
    Summary,
)
from datafree.run.cost import costs
from datafree.signals import Signal
from datafree.solve import Solution, floor_db


@dataclass(frozen=True)
class Steps:
    """What the steps of `compress` came to, in their order."""

    kept: tuple[Skipped, ...]
    slimmed: Slimmed
    equalization: Equalization
    allocation: Allocation
    distilled: Distilled | None
    solution: Solution


def summarize(steps: Steps, model: nn.Module, *, fingerprint: str, seconds: float, spent: int) -> Summary:
    """The summary of a run.

    Args:
        spent: multiply-adds of the compression itself.
    """
    recipe, problem = steps.allocation.recipe, steps.allocation.problem
    signal, plan = problem.signal, problem.plan
    widths = (max(bits) for bits in plan.activation_bits.values())
    bits = recipe.activations.bits
    return Summary(
        model=type(model).__name__,
        seed=signal.seed,
        signal=_signal_summary(signal),
        input_range=signal.input_range,
        seconds=seconds,
        peak_memory_bytes=peak_memory(),
        slimmed=steps.slimmed,
        equalization=steps.equalization,
        activations=ActivationBits(bits, bits and max(widths, default=8)),
        skipped=plan.skipped + steps.kept,
        warnings=warnings_of(model, signal.stats, signal.input_range),
        fingerprint=fingerprint,
        removed=tuple(described(steps.allocation.channels)),
        pareto=steps.allocation.pareto,
        distilled=steps.distilled,
        mended=tuple(_mended(steps.solution)),
        coarse_inputs=tuple(_coarse_inputs(steps.solution)),
        **vars(costs(problem.teacher, steps.solution, slimmed=steps.slimmed, spent=spent)),
    )


def _signal_summary(signal: Signal) -> SignalSummary:
    drawn = bool(signal.input_stats)
    return SignalSummary(
        signal.kind, signal.num_images, drawn, signal.pooling, signal.distance, signal.asked, signal.unmoved
    )


def _mended(solution: Solution) -> Iterator[Mended]:
    for name, layer in solution.layers.items():
        if layer.remedy:
            yield Mended(name, layer.as_asked_db, layer.remedy, layer.channel_db)


def _coarse_inputs(solution: Solution) -> Iterator[CoarseInput]:
    for name, layer in solution.layers.items():
        bits = solution.plan.layers[name].input_bits
        if bits is not None and layer.input_db < floor_db(bits):
            yield CoarseInput(name, bits, layer.input_db)


def warnings_of(model: nn.Module, stats: Stats, chosen: InputRange) -> tuple[str, ...]:
    """What may make the result worse than it could be."""
    found = []
    if model.training:
        found.append("the model was in train mode; a copy in eval mode was compressed")
    if not stats:
        found.append(
            "there is no BatchNorm: layers were solved on procedural images alone, unlike the training data perhaps"
        )
    if "assumed" in chosen.source:
        found.append(f"the scale of the network's input is {chosen}; set it if your images look otherwise")
    return tuple(found)
