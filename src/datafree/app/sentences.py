"""Records of a run in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from datafree.app.forecast import Forecast
from datafree.records import (
    ActivationBits,
    CoarseInput,
    Distilled,
    Equalization,
    InputRange,
    SignalSummary,
    Slimmed,
    Summary,
)
from datafree.solve import floor_db

RANDOM_WEIGHTS = "the weights are random, so accuracy means nothing; give --pretrained or --weights FILE"
NUM_NAMES = 3  # layers named in one line


def signal_text(signal: SignalSummary, chosen: InputRange) -> str:
    """What layers were solved on, and how well it came out."""
    probes = ", half of them procedural" if signal.has_probes else ""
    parts = [f"{signal.kind}, {signal.num_images} images{probes}"]
    if signal.draws_input:
        parts.append(f"the network's input is drawn at {chosen}; pooling is {signal.pooling}")
    if signal.distance is not None:
        what = f"cross entropy of {signal.towards}" if signal.towards else "distance from BatchNorm"
        asked = "" if signal.asked is None else f", {signal.asked:.0f} % show {_asked_for(signal)}"
        parts.append(f"{what} {signal.distance[0]:.3g} -> {signal.distance[1]:.3g}{asked}")
    if signal.fit is not None:
        parts.append(f"distance from BatchNorm {signal.fit.distance:.3g}")
    if signal.unmoved:
        parts.append(f"as they were: {signal.unmoved}")
    return "; ".join(parts)


def _asked_for(signal: SignalSummary) -> str:
    return "what was asked for" if signal.towards == "random outputs" else "the class asked for"


def equalization_text(done: Equalization) -> str:
    """Which layers were equalized, and at what cost."""
    if done.mode == "off":
        return "off"
    if done.mode == "depthwise":
        return f"depthwise: inputs of {len(done.depthwise)} depthwise layers, in the requantization before them"
    dropped = f", {len(done.dropped)} dropped: no gain" if done.dropped else ""
    return (
        f"{done.mode}: {done.coverage:.0f} % of {done.num_layers} layers ({len(done.cancelled)} between layers "
        f"at no cost, {len(done.output_vectors)} in the requantization, {len(done.input_vectors)} as a multiply"
        f"{dropped})"
    )


def slimmed_text(found: Slimmed, num_parameters: int) -> str:
    """What does nothing, of so many parameters."""
    if not found.removed:
        return "nothing"
    share = 100 * found.parameters / max(1, num_parameters)
    sets = f"{len(found.removed)} set{'s' * (len(found.removed) > 1)} of layers"
    return f"{found.parameters:,} of {num_parameters:,} parameters, {share:.1f} %, in {sets}"


def activations_text(bits: ActivationBits) -> str:
    """Widths of tensors between layers."""
    if bits.layer_inputs is None:
        return "float"
    return f"{bits.layer_inputs} bits at layer inputs; {bits.others} at sums, concatenations, pooling, network input"


def distilled_text(done: Distilled | None) -> str:
    """What training the student as a whole came to."""
    if done is None:
        return "none"
    gained = "" if done.step else ": nothing gained, the start is kept"
    losses = f"{done.loss} on images held out {done.before:.3g} -> {done.after:.3g}"
    return f"{losses} after {done.step} of {done.steps} steps{gained}"


def losses(summary: Summary) -> Iterator[str]:
    """Layers that were not left as they were asked for, and those that lose much all the same."""
    for layer in summary.mended:
        holds = "exact" if math.isinf(layer.channel_db) else f"{layer.channel_db:.0f} dB"
        tried = f", after {', '.join(layer.tried)} did not help" if layer.tried else ""
        cost = f", {layer.bytes:,} bytes more" if layer.bytes > 0 else ""
        yield (
            f"{layer.name}: as it was asked for, {layer.as_asked_db:.0f} dB of each channel on average were left; "
            f"solved with {layer.remedy}{tried}: {holds}{cost}"
        )
    yield from _harmless([(c.name, c.input_db, c.output_db) for c in summary.coarse_inputs if not _matters(c)])


def forecasts(found: Sequence[Forecast]) -> Iterator[str]:
    """Layers that will probably lose channels, the worst first; of a kind a line each for a few, and how many more."""
    for what, becomes in (("weights", "; compress looks for another way"), ("input", "")):
        bad = [f for f in found if f.what == what and (what == "weights" or _matters(f))]
        worst = sorted(bad, key=lambda f: f.channel_db)
        for layer in worst[:NUM_NAMES]:
            alone = "" if math.isinf(layer.output_db) else f", {max(0, layer.output_db):.0f} dB of the network's output"
            yield (
                f"{layer.name}: rounding its {what} will leave about {layer.channel_db:.0f} dB of each channel on "
                f"average{alone} ({layer.reason}){becomes}"
            )
        if len(worst) > NUM_NAMES:
            yield f"rounding the {what} of {len(worst) - NUM_NAMES} more layers will leave less than it should"
    yield from _harmless([(f.name, f.channel_db, f.output_db) for f in found if f.what == "input" and not _matters(f)])


def _matters(found: CoarseInput | Forecast) -> bool:
    """Whether the network's output suffers, too, from the rounding of one layer's input."""
    return found.output_db < floor_db(found.bits)


def _harmless(found: Sequence[tuple[str, float, float]]) -> Iterator[str]:
    """One line of layers that lose channels, by (name, what is left of these, what is left of the network's output)."""
    if found:
        names, channels, outputs = zip(*found, strict=True)
        left = "all" if math.isinf(min(outputs)) else f"{min(outputs):.0f} dB or more"
        yield (
            f"{some(names)}: rounding the input leaves {min(channels):.0f} dB or more of each channel on average, but "
            f"{left} of the network's output: those channels hardly matter"
        )


def some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    rest = len(names) - NUM_NAMES
    return ", ".join(names[:NUM_NAMES]) + (f" and {rest} more" if rest > 0 else "")
