"""What a compression did and what it cost, from what its steps came to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from datafree import graph as g
from datafree.allocation import Allocation
from datafree.execution import peak_memory
from datafree.graph import described
from datafree.models import OnnxNetwork
from datafree.quantization import stored_size
from datafree.records import (
    ActivationBits,
    CoarseInput,
    Distilled,
    Equalization,
    InputRange,
    LayerResult,
    Mended,
    SignalSummary,
    Skipped,
    Slimmed,
    Stats,
    Summary,
    WeightSpec,
)
from datafree.run.cost import costs, weight_bytes
from datafree.signals import GIVEN, Signal
from datafree.solve import Solution, coarse_inputs, floor_db


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
    bits, coarse = recipe.activations.bits, coarse_inputs(steps.solution, signal)
    return Summary(
        model=model_name(model),
        seed=signal.seed,
        signal=_signal_summary(signal),
        input_range=signal.input_range,
        seconds=seconds,
        peak_memory_bytes=peak_memory(),
        slimmed=steps.slimmed,
        equalization=steps.equalization,
        activations=ActivationBits(bits, bits and max(widths, default=8)),
        skipped=plan.skipped + steps.kept,
        warnings=(*about_signal(model, signal), *lost_inputs(coarse)),
        fingerprint=fingerprint,
        removed=tuple(described(steps.allocation.channels)),
        pareto=steps.allocation.pareto,
        distilled=steps.distilled,
        mended=tuple(_mended(steps.solution)),
        coarse_inputs=coarse,
        source=str(model.source.absolute()) if isinstance(model, OnnxNetwork) and model.source else "",
        **vars(costs(problem.teacher, steps.solution, slimmed=steps.slimmed, spent=spent)),
    )


def model_name(model: nn.Module) -> str:
    """A network's class, or the name of the file it was read from."""
    from_file = isinstance(model, OnnxNetwork) and model.source
    return from_file.stem if from_file else type(model).__name__


def _signal_summary(signal: Signal) -> SignalSummary:
    drawn = bool(signal.input_stats)
    told = signal.distance, signal.asked, signal.unmoved, signal.fit, signal.towards, signal.has_probes
    return SignalSummary(signal.kind, signal.num_images, drawn, signal.pooling, *told)


def _mended(solution: Solution) -> Iterator[Mended]:
    wide = g.layers_with_v_o(solution.teacher)
    for name, layer in solution.layers.items():
        asked = solution.plan.layers[name].weights
        if layer.remedy and asked is not None:
            more = _added_bytes(layer, asked, len(layer.bias) if name in wide else None)
            yield Mended(name, layer.as_asked_db, layer.remedy, layer.channel_db, layer.tried, more)


def _added_bytes(layer: LayerResult, asked: WeightSpec, num_multipliers: int | None) -> int:
    """What a layer's weights and scales take beyond what was asked for."""
    scales = num_multipliers or (len(layer.bias) if asked.per_channel else 1)
    return weight_bytes(layer, num_multipliers) - stored_size(layer.weight.numel(), asked.bits or 32, 0) - 4 * scales


def lost_inputs(found: Iterable[CoarseInput]) -> Iterator[str]:
    """Layers whose input is rounded so coarsely that the network's output suffers, and what to do."""
    for layer in found:
        if layer.output_db < floor_db(layer.bits):
            wider = "8" if layer.bits < 8 else "null"
            yield (
                f"{layer.name}: rounding its input to {layer.bits} bits leaves {layer.input_db:.0f} dB of each channel "
                f"on average and, alone, {max(0, layer.output_db):.0f} dB of the network's output; give it more with "
                f"layers.{layer.name}.activations.bits={wider} or layers.{layer.name}=keep"
            )


def about_signal(model: nn.Module, signal: Signal) -> Iterator[str]:
    yield from warnings_of(model, signal.stats, signal.input_range, towards=signal.towards)
    if signal.at_once:
        yield (
            f"the device's memory ran out while images were made: the network saw {signal.at_once} of them at a time "
            "from then on, which takes longer"
        )
    if (fit := signal.fit) and fit.nearer:
        yield (
            f"the images given would be much nearer to what BatchNorm remembers {fit.nearer}: a distance of "
            f"{fit.other:.2g} instead of {fit.distance:.2g}; check how they are read, or the order and scale that the "
            "network was trained with"
        )


def warnings_of(model: nn.Module, stats: Stats, chosen: InputRange, *, towards: str | None = None) -> tuple[str, ...]:
    """What may make the result worse than it could be.

    Args:
        towards: what images were moved towards where there is no BatchNorm, "" = they were not; None = not made yet.
    """
    found = []
    if model.training:
        found.append("the model was in train mode; a copy in eval mode was compressed")
    if zeros := [name for name, module in model.named_modules() if _is_zero(module)]:
        more = f" and {len(zeros) - 1} more" if len(zeros) > 1 else ""
        found.append(
            f"{zeros[0]}{more}: gamma of BatchNorm is 0 in every channel, as before training: the layers in front "
            "change nothing; load trained weights"
        )
    if _never_trained(model):
        found.append(
            "BatchNorm has mean 0 and variance 1 everywhere, so it has never seen an image: the network is not "
            "trained, or its weights were loaded without their buffers"
        )
    if not stats and chosen is not GIVEN:
        found.append(f"there is no BatchNorm: {_known_without(chosen, towards)}")
    if "assumed" in chosen.source:
        found.append(f"the scale of the network's input is {chosen}; set it if your images look otherwise")
    return tuple(found)


def _is_zero(module: nn.Module) -> bool:
    gamma = module.weight if isinstance(module, nn.modules.batchnorm._BatchNorm) else None
    return isinstance(gamma, Tensor) and not bool(gamma.any())


def _never_trained(model: nn.Module) -> bool:
    """Whether all BatchNorms are as they are made."""
    norms = [
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
    ]
    return bool(norms) and all(bool((m.running_mean == 0).all() and (m.running_var == 1).all()) for m in norms)


def _known_without(chosen: InputRange, towards: str | None) -> str:
    """What is known and what is not where no BatchNorm tells, and what layers are solved on."""
    how = " alone" if towards == "" else f", half of them moved towards {towards or 'random classes or outputs'}"
    scale = "assumed" if "assumed" in chosen.source else f"known ({chosen.source})"
    return (
        f"layers are solved on procedural images{how}, unlike the training data perhaps; the scale of the input is "
        f"{scale}, what layers see is not known"
    )
