"""What the command line shows, built as rich renderables; nothing here prints."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from datafree.app.inspection import Inspection
from datafree.app.latency import Latency
from datafree.app.origin import Origin
from datafree.app.pareto import best
from datafree.app.photographs import Guess, SeenPhotograph
from datafree.app.sentences import (
    RANDOM_WEIGHTS,
    activations_text,
    distilled_text,
    equalization_text,
    signal_text,
    slimmed_text,
    some,
)
from datafree.export import Written
from datafree.images import BATCH_SIZE
from datafree.models import Normalization, num_file_bytes
from datafree.progress import duration
from datafree.recipe import Recipe
from datafree.records import Estimate, LayerResult, Skipped, Slimmed, Summary
from datafree.run import Evaluation, Run

DemoRow = tuple[str, Run, Evaluation, Evaluation]
"""A preset, its run, the run's evaluation, and that of plain rounding."""


# ---- name and value, one fact a row


def run_facts(done: Run) -> dict[str, str]:
    """What a compression did and what it cost."""
    s = done.summary
    widths = Counter(0 if layer.bits == 32 else layer.bits for layer in done.layers)
    widths += Counter({0: s.num_layers - s.num_quantized})
    size, float_size = num_bytes(s.bytes), num_bytes(s.float_bytes)
    work = f"{count(s.bit_operations)}, {share(s.bit_operations, s.float_bit_operations)}"
    errors = {layer.name: layer.error_db for layer in done.layers}
    return {
        "seed": str(s.seed),
        "signal": signal_text(s.signal, s.input_range),
        "input range": str(s.input_range),
        "layers": f"{s.num_quantized} of {s.num_layers} solved",
        "weights": _widths(widths),
        "did nothing, gone": slimmed_text(s.slimmed, s.float_bytes // 4),
        "pruned": _pruned(s),
        "activations": activations_text(s.activations),
        "equalization": equalization_text(s.equalization),
        "steps dropped": _dropped(done.layers),
        "size": f"{size}, {share(s.bytes, s.float_bytes)} of {float_size} in float32",
        "multiply-adds": f"{count(s.macs)} for one image, {share(s.macs, s.float_macs)} of {count(s.float_macs)}",
        "bit operations": f"{work} of {count(s.float_bit_operations)} in float32",
        "predicted SQNR": f"{_worst(errors)}; its weights alone, on the signal",
        "agreement": estimate_text(s.estimate),
        "distillation": distilled_text(s.distilled),
        "time": f"{s.seconds:.1f} s",
        "spent": f"{count(s.spent_macs)} multiply-adds, as {s.forward_equivalents:.0f} forward passes of one image",
        "peak memory": f"{num_bytes(s.peak_memory_bytes)}, whole process",
    }


def run_record(done: Run, warnings: Sequence[str]) -> dict[str, Any]:
    """What became of a network, for JSON: the summary, every layer in short, and what the user should know."""
    short = ("name", "bits", "sparsity", "error_db", "seconds")
    return {
        "summary": asdict(done.summary),
        "layers": [{name: getattr(layer, name) for name in short} for layer in done.layers],
        "warnings": [*warnings],
    }


def _pruned(s: Summary) -> str:
    """What was removed on purpose; rounding makes more zeros."""
    gone = [f"{100 * s.sparsity:.1f} % of the weights are zero"] if s.sparsity else []
    return "; ".join([*gone, *(f"removed: {line}" for line in s.removed)]) or "nothing"


def _dropped(layers: Sequence[LayerResult]) -> str:
    """Steps left out of some layers, because they would not have lowered the predicted error."""
    found = Counter(step for layer in layers for step in layer.dropped)
    return ", ".join(f"{step} in {n} of {len(layers)} layers" for step, n in found.items()) or "none"


def estimate_text(found: Estimate | None) -> str:
    """Agreement, predicted."""
    if found is None:
        return "not estimated"
    return (
        f"about {found.agreement:.0f} % of images keep their class, {found.low:.0f} to {found.high:.0f} (no data read)"
    )


def inspection_facts(found: Inspection, recipe: Recipe) -> dict[str, str]:
    """What a compression would do."""
    layers, kept = found.layers, len(found.kept)
    num_quantized = sum(layer.weight_bits is not None for layer in layers)
    outputs = sum(layer.knows_output for layer in layers)
    inputs = sum(layer.knows_input for layer in layers)
    coverage = {f"if {e.mode}": equalization_text(e).removeprefix(f"{e.mode}: ") for e in found.equalizations}
    return {
        "input": ", ".join(f"(N, {', '.join(map(str, shape))})" for shape in found.input_shapes),
        "input range": found.input_range,
        "layers": f"{num_quantized} of {len(layers)} would be quantized",
        "weights": _widths(Counter(layer.weight_bits or 0 for layer in layers)),
        "layer inputs": _widths(Counter(layer.input_bits or 0 for layer in layers)),
        "BatchNorm": f"{found.num_batchnorms - kept} fold into a layer, {kept} stay as affine operators",
        "statistics": f"known at the output of {outputs} and the input of {inputs} of {len(layers)} layers",
        "does nothing": f"{slimmed_text(found.slimmed, found.num_parameters)}{_slim_hint(found.slimmed, recipe)}",
        "pruning": _pruning(recipe),
        "time": f"about {duration(found.seconds)} on this machine, with the estimate",
        "memory": f"about {num_bytes(found.memory)} at most, whole process",
        "equalization": f"{recipe.equalize}, of these:",
        **coverage,
    }


def _slim_hint(found: Slimmed, recipe: Recipe) -> str:
    return "; slim=on leaves it out" if found.removed and recipe.slim != "on" else ""


def _pruning(recipe: Recipe) -> str:
    """What the recipe would remove."""
    if recipe.prune is None:
        return "none" if recipe.budget is None else f"for a budget of {recipe.budget}"
    of = "the multiply-adds, as whole channels" if recipe.prune.pattern == "channels" else "the weights"
    pattern = f", {recipe.prune.pattern}" if recipe.prune.cell else ""
    return f"{100 * recipe.prune.sparsity:g} % of {of}{pattern}"


def evaluation_facts(found: Evaluation) -> dict[str, str]:
    """What was lost on labelled images."""
    return {
        "top-1, student": f"{found.top1:.2f} ± {found.top1_error:.2f} %",
        "top-1, float": f"{found.float_top1:.2f} %",
        "lost": f"{found.lost:.2f} ± {found.lost_error:.2f} points",
        "agreement": f"{found.agreement:.2f} % of images get the class that float gives them",
        "SQNR": f"{_worst(found.layer_sqnr_db)}; the whole network running, first {BATCH_SIZE} images",
        "±": f"one standard error over {found.num_images} images; of the loss, by paired differences",
    }


def pixels_text(used: Normalization | None) -> str:
    """How images become the network's input."""
    change = "not normalised (see --mean)"
    if used is not None:
        mean, std = (",".join(f"{v:g}" for v in values) for values in (used.mean, used.std))
        change = f"less {mean}, divided by {std} ({used.source})"
    return f"8-bit ones from 0 to 1, {change}; floating-point ones as they are"


def facts_table(title: str, facts: dict[str, str]) -> Group:
    """A title and its facts."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 1))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for row in facts.items():
        table.add_row(*row)
    return Group(Text(), Text(title, "bold"), Text(), table, Text())


def file_facts(done: Run, file: Path, written: Written) -> dict[str, str]:
    """A file beside the float network's weights, and what checking it found."""
    size = num_file_bytes(file)
    of_float = share(size, done.summary.float_bytes)
    return {"size": f"{num_bytes(size)}, {of_float} of the float network's weights", **written.findings}


def latency_table(found: Sequence[Latency]) -> Group:
    """One file a row."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("file")
    for name in ("ms", "quartiles", "speed", "images/s", "size", "zlib", "peak memory"):
        table.add_column(name, justify="right")
    for item in found:
        table.add_row(
            Path(item.file).name,
            f"{item.median_ms:.2f}",
            f"{item.low_ms:.2f} to {item.high_ms:.2f}",
            f"{item.speed:.2f}x",
            f"{item.images_per_second:.1f}",
            num_bytes(item.bytes),
            num_bytes(item.compressed_bytes),
            num_bytes(item.peak_memory_bytes),
        )
    first = found[0]
    threads = "1 thread" if first.threads == 1 else f"{first.threads} threads"
    said = (
        f"ms: median of {first.turns} turns that the files took one after another, batch of {first.batch}, {threads}, "
        "random images. speed: against the first file, within a turn. peak memory: of the whole process."
    )
    simulated = [Path(i.file).name for i in found if "simulated" in i.runtime]
    if simulated:
        said += f" {', '.join(simulated)}: simulated by PyTorch in float, so its speed says nothing."
    return Group(table, Text(said, "dim"), Text())


def sweep_rows(runs: Mapping[str, Run], origins: Mapping[str, Origin]) -> list[dict[str, object]]:
    """One recipe a row, as numbers; which are the best of a trade-off."""
    summaries = {name: run.summary for name, run in runs.items()}
    agreements = [s.estimate and s.estimate.agreement for s in summaries.values()]
    smallest = best([s.bytes for s in summaries.values()], agreements)
    fastest = best([origins[name].milliseconds for name in runs], agreements)
    return [
        {
            "recipe": name, "bytes": s.bytes, "float_bytes": s.float_bytes, "milliseconds": origins[name].milliseconds,
            "speed": origins[name].speed, "agreement": s.estimate and s.estimate.agreement,
            "low": s.estimate and s.estimate.low, "high": s.estimate and s.estimate.high, "best_size": small,
            "best_time": fast,
        }
        for (name, s), small, fast in zip(summaries.items(), smallest, fastest, strict=True)
    ]  # fmt: skip


def sweep_table(runs: Mapping[str, Run], origins: Mapping[str, Origin]) -> Group:
    """One recipe a row."""
    table = _columns("recipe", "size", "of float", "ms", "speed", "agreement", "best")
    for row, run in zip(sweep_rows(runs, origins), runs.values(), strict=True):
        s, timed = run.summary, origins[str(row["recipe"])]
        marks = [name for name in ("size", "time") if row[f"best_{name}"]]
        table.add_row(
            str(row["recipe"]),
            num_bytes(s.bytes),
            share(s.bytes, s.float_bytes),
            "" if timed.milliseconds is None else f"{timed.milliseconds:.2f}",
            "" if timed.speed is None else f"{timed.speed:.2f}x",
            "" if s.estimate is None else str(s.estimate),
            " ".join(marks),
        )
    said = (
        "agreement: predicted share of images that keep their class, and its interval; no data read. ms, speed: of the "
        "ONNX file for one image, beside float's. best: no other is as small (or fast) and agrees as much."
    )
    return Group(table, Text(said, "dim"), Text())


# ---- what the user should know beside the facts


def notes(warnings: Sequence[str], skipped: Sequence[Skipped]) -> list[Text]:
    """Warnings one by one; what is left as it was, grouped by reason."""
    reasons: dict[str, list[str]] = {}
    for item in skipped:
        reasons.setdefault(item.reason, []).append(item.name)
    lines = [Text.assemble(("warning: ", "yellow"), text) for text in warnings]
    return lines + [
        Text.assemble((f"{len(names)} x ", "yellow"), f"{reason} ({some(names)})") for reason, names in reasons.items()
    ]


def about_weights(origin: str) -> tuple[str, ...]:
    """A warning where the weights are random."""
    return (RANDOM_WEIGHTS,) if origin.endswith("random weights") else ()


# ---- one row a layer


def layers_table(layers: Sequence[LayerResult]) -> Table:
    """What became of every layer."""
    table = _columns("layer", "outputs", "inputs x taps", "bits", "zeros", "predicted SQNR, dB", "seconds")
    for layer in layers:
        sides = [str(side) for side in layer.weight.shape]
        cells = (str(layer.bits), f"{100 * layer.sparsity:.1f} %", f"{layer.error_db:.1f}", f"{layer.seconds:.2f}")
        table.add_row(layer.name, *sides, *cells)
    return table


def inspected_table(found: Inspection) -> Table:
    """What is known and planned of every layer."""
    table = _columns("layer", "weight", "bits, input bits", "statistics", "fed by", left=5)
    for layer in found.layers:
        known = {"input": layer.knows_input, "output": layer.knows_output}
        statistics = " ".join(side for side, has in known.items() if has) or "none"
        shape = "x".join(map(str, layer.weight_shape))
        bits = ", ".join(str(width or "float") for width in (layer.weight_bits, layer.input_bits))
        table.add_row(layer.name, shape, bits, statistics, some(layer.producers))
    return table


# ---- the demo


def photographs_table(seen: Sequence[SeenPhotograph]) -> Group:
    """The best classes of every photograph, of the float network and of the file side by side."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("photograph", style="cyan", no_wrap=True)
    table.add_column("float network", ratio=1)
    table.add_column("compressed file", ratio=1)
    for photograph in seen:
        table.add_row(photograph.name, _Guesses(photograph.float_network), _Guesses(photograph.file))
    same = sum(item.float_network[0].name == item.file[0].name for item in seen)
    said = (
        f"The five best of ImageNet's 1000 classes, in percent. The best is the same on {same} of {len(seen)} "
        "photographs; where none of the classes fits, as for coins, both only guess."
    )
    title = Text("Twelve photographs that the compression has not seen", "bold")
    return Group(Text(), title, table, Text(said, "dim"))


@dataclass(frozen=True)
class _Guesses:
    """The best in bold; a name and its percent stay on one line, which rich alone would not keep together."""

    found: Sequence[Guess]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        named = [f"{guess.name} {guess.percent:.0f}".replace(" ", "\N{NO-BREAK SPACE}") for guess in self.found]
        # it breaks at ASCII's spaces alone
        lines = textwrap.wrap(", ".join(named), options.max_width, break_on_hyphens=False)
        shown = Text("\n".join(lines).replace("\N{NO-BREAK SPACE}", " "), no_wrap=True)
        shown.stylize("bold", 0, len(named[0]))
        yield shown


def demo_table(reference: Evaluation, rows: Sequence[DemoRow]) -> Group:
    """Every preset beside plain rounding, and what the figures mean."""
    table = _columns("", "top-1, datafree", "top-1, plain rounding", "size", "of float32", "time")
    float_size = num_bytes(rows[0][1].summary.float_bytes)
    table.add_row("float32", f"{reference.top1:.1f} %", "", float_size, "100.0 %", "")
    for preset, done, ours, plain in rows:
        s = done.summary
        cost = (num_bytes(s.bytes), share(s.bytes, s.float_bytes), f"{s.seconds:.1f} s")
        table.add_row(preset, Text(f"{ours.top1:.1f} %", "bold"), f"{plain.top1:.1f} %", *cost)
    title = Text("A digits network, compressed without one image", "bold")
    return Group(Text(), title, table, *(Padding(note, (0, 2, 1, 2)) for note in _demo_notes(reference, rows)))


def demo_record(preset: str, done: Run, ours: Evaluation, plain: Evaluation) -> dict[str, Any]:
    """A row of the demo's table, for JSON."""
    s = done.summary
    scores = {"top1": ours.top1, "plain_rounding_top1": plain.top1, "num_images": ours.num_images}
    return {"preset": preset, **scores, "bytes": s.bytes, "float_bytes": s.float_bytes, "seconds": s.seconds}


def _known(value: float | None) -> float:
    assert value is not None, "the demo's digits have labels"
    return value


def _demo_notes(reference: Evaluation, rows: Sequence[DemoRow]) -> list[str]:
    ours_error = max(_known(ours.lost_error) for _, _, ours, _ in rows)
    plain_error = max(_known(plain.lost_error) for _, _, _, plain in rows)
    found = [
        f"top-1: of {reference.num_images} held-out images; standard error of float32 "
        f"{reference.top1_error:.1f} points, of the difference to it at most {ours_error:.1f} (datafree) and "
        f"{plain_error:.1f} (plain rounding). size: weights and biases at their real widths. time: of one "
        "compression on this computer; the first also loads torch's exporter.",
        "plain rounding: the same bits for every weight and every activation, and as many weights to one scale; "
        "each weight rounded to the nearest step between the smallest and the largest. No equalization, no clipping "
        "of weight ranges, no error feedback, no bias correction. Activation ranges are found as by datafree.",
    ]
    found += [
        f"{preset}: all weights of a layer share a scale. Equalization, "
        f"{equalization_text(done.summary.equalization)}; a layer equalized in the requantization has one multiplier a "
        "channel there (4 bytes each): it costs what one scale a channel costs."
        for preset, done, _, _ in rows
        if done.recipe.weights.per == "tensor" and done.recipe.equalize != "off"
    ]
    enough = [preset for preset, _, _, plain in rows if _known(plain.lost) <= 2 * _known(plain.lost_error)]
    if enough:
        found.append(
            f"At {', '.join(enough)} plain rounding does not fail: it is within two standard errors of "
            "float32, and this small network needs no more there."
        )
    level = [
        preset for preset, _, ours, plain in rows if preset not in enough and _known(ours.top1) <= _known(plain.top1)
    ]
    if level:
        found.append(f"At {', '.join(level)} datafree does no better than plain rounding on this network.")
    if len(enough) < len(rows):
        found.append(
            "The network was chosen among trained variants as one that plain rounding visibly breaks where all weights "
            "of a layer share a scale, as it breaks MobileNets; another one may lose more or less."
        )
    return found


# ---- words and numbers


def _columns(*headings: str, left: int = 1) -> Table:
    """A table with these headings; numbers, to the right of the first columns, are aligned right."""
    table = Table(box=box.SIMPLE_HEAD)
    for position, heading in enumerate(headings):
        table.add_column(heading, justify="left" if position < left else "right", overflow="fold")
    return table


def num_bytes(number: int) -> str:
    """Three digits: 950 B, 1.21 kB, 3.50 MB."""
    return f"{number} B" if number < 1000 else f"{count(number)}B"


def count(number: int) -> str:
    """Three digits: 950, 1.21 k, 3.50 M."""
    if number < 1000:
        return str(number)
    power = min(int(math.log10(float(f"{number:.3g}"))) // 3, 4)
    return f"{number / 1000**power:#.3g} {' kMGT'[power]}".replace(". ", " ")


def share(part: int, whole: int) -> str:
    """Percent, one decimal."""
    return f"{100 * part / max(whole, 1):.1f} %"


def _layers(num: int) -> str:
    return f"{num} layer{'' if num == 1 else 's'}"


def _widths(counts: Counter[int]) -> str:
    """The most frequent first; 0 = float."""
    return ", ".join(f"{f'{b} bits' if b else 'float'} in {_layers(num)}" for b, num in counts.most_common())


def _worst(sqnr_db: dict[str, float]) -> str:
    if not sqnr_db:
        return "of no layer"
    name = min(sqnr_db, key=sqnr_db.__getitem__)
    middle = f"median {median(sqnr_db.values()):.1f} dB of {_layers(len(sqnr_db))}"
    return f"worst {sqnr_db[name]:.1f} dB ({name}), {middle}"
