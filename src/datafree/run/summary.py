"""What a compression did and what it cost, from what its steps came to."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from datafree.allocation import Allocation
from datafree.execution import peak_memory
from datafree.graph import described
from datafree.recipe import Recipe
from datafree.records import InputRange, LayerResult, Skipped, Stats, Summary
from datafree.run.cost import costs
from datafree.signals import Signal
from datafree.teacher import Equalization


@dataclass(frozen=True)
class Steps:
    """What the steps of `compress` came to, in their order; `smaller` is the teacher without the channels that went."""

    teacher: fx.GraphModule
    kept: tuple[Skipped, ...]
    stats: Stats
    equalization: Equalization
    source: Signal
    input_range: InputRange
    allocation: Allocation
    smaller: fx.GraphModule
    distilled: str
    layers: dict[str, LayerResult]


def summarize(steps: Steps, model: nn.Module, *, fingerprint: str, seconds: float, spent: int) -> Summary:
    """The summary of a run.

    Args:
        spent: multiply-adds of the compression itself.
    """
    source, recipe, plan = steps.source, steps.allocation.recipe, steps.allocation.plan
    return Summary(
        model=type(model).__name__,
        seed=source.seed,
        signal=f"{source.kind}, {source.num_images} images{source.note}",
        input_range=str(steps.input_range),
        seconds=seconds,
        peak_memory_bytes=peak_memory(),
        equalization=str(steps.equalization),
        activations=_activations(recipe, plan.activation_bits),
        skipped=plan.skipped + steps.kept,
        warnings=warnings_of(model, steps.stats, steps.input_range),
        fingerprint=fingerprint,
        removed=tuple(described(steps.allocation.channels)),
        pareto=steps.allocation.pareto,
        distilled=steps.distilled,
        **vars(costs(plan, steps.teacher, steps.smaller, steps.layers, spent=spent)),
    )


def _activations(recipe: Recipe, activation_bits: dict[str, tuple[int, ...]]) -> str:
    if recipe.activations.bits is None:
        return "float"
    wide = max((max(w) for w in activation_bits.values()), default=8)
    return f"{recipe.activations.bits} bits at layer inputs; {wide} at sums, concatenations, pooling, network input"


def warnings_of(model: nn.Module, stats: dict, chosen: InputRange) -> tuple[str, ...]:
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
