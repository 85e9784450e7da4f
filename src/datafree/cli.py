"""The command line, `datafree demo | compress | inspect | evaluate`; the only file that prints."""

from __future__ import annotations

import io
import math
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from datafree import graph as g
from datafree import pipeline, run
from datafree.evaluate import Evaluation, evaluate_models
from datafree.images import BATCH_SIZE, load_images
from datafree.inspect import Inspection
from datafree.inspect import inspect as inspect_model
from datafree.layer import LayerError
from datafree.models import load_model, provenance
from datafree.pools import processes, serial
from datafree.recipe import Recipe, presets
from datafree.records import LayerResult, Skipped
from datafree.run import Run, RunError

WIDTH = 100  # columns, where there is no terminal to ask
NUM_NAMES = 3  # layers named in one line
DEMO_PRESETS = ("w8a8-tensor", "w8a8", "w4a8", "w4a4")
PLAIN_ROUNDING = {
    "equalize": "off",
    "solve": {"method": "nearest", "clip": False, "bias_correction": False},
    "ends": "alike",
}
UsageError = typer.BadParameter.__base__  # click's own, which older typer imports and newer typer contains

app = typer.Typer(
    help="Compress a trained convolutional network with no data at all.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="timm:NAME, torchvision:NAME, demo, or pkg.module:factory, found from the current directory.",
    ),
]
Weights = Annotated[Path | None, typer.Option(metavar="FILE", help=".safetensors, or .pth that holds tensors only.")]
Pretrained = Annotated[
    bool, typer.Option("--pretrained", help="Download the published weights of timm or torchvision.")
]
RecipeName = Annotated[
    str,
    typer.Option("--recipe", metavar="NAME|FILE", help=f"A .yaml file, or one of {', '.join(presets())}."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe, as in --set weights.bits=3; repeatable."),
]
Threads = Annotated[int | None, typer.Option(min=1, metavar="N", help="Threads of torch in this process.")]
Seed = Annotated[int, typer.Option(metavar="N", help="Of everything random.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also list every layer.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 the run failed, 2 the user's input is wrong."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII locale shows "?" instead of failing
    try:
        return app(arguments or ["--help"], prog_name="datafree", standalone_mode=False) or 0
    except typer.Abort:
        return 130  # interrupted, as shells count it
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        code, message = _explain(error)
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return code


def _explain(error: Exception) -> tuple[int, str]:
    """Exit code and message: a ValueError is the user's, a failed layer and the unforeseen are the run's."""
    if isinstance(error, UsageError):
        command = error.ctx.command_path if error.ctx else "datafree"
        return 2, f"{error.format_message().rstrip('.')}; see {command} --help"
    if isinstance(error, LayerError):
        return 1, str(error)
    if isinstance(error, ValueError):
        return 2, str(error)
    return 1, f"{type(error).__name__}: {error} (not foreseen; --debug shows where)"


def _show_version(asked: bool) -> bool:
    if asked:
        print(f"datafree {metadata.version('datafree')}")
        raise typer.Exit
    return asked


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(seed: Seed = 0, threads: Threads = 1, debug: Debug = False) -> None:
    """Compress a small digits network; write nothing.

    Four widths, each beside plain rounding, scored on held-out digits.
    """
    from datafree.demo import digits, digits_net

    _set_threads(threads)
    model, (images, labels) = digits_net(), digits("test")
    data = [(images, labels)]
    rows = []
    for preset in DEMO_PRESETS:
        recipe = Recipe.preset(preset)
        plain = Recipe(**{**recipe.model_dump(), **PLAIN_ROUNDING})
        ours = _compress(model, recipe, images[:1], seed=seed, label=f"{preset}: ")
        other = _compress(model, plain, images[:1], seed=seed, label=f"{preset}, plain rounding: ")
        scores = (evaluate_models(r.student, model, data, layers=False) for r in (ours, other))
        rows.append((preset, ours, *scores))
    _print_demo(evaluate_models(model, model, data, layers=False), rows)


@app.command()
def compress(
    model: Model,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The run directory to write.")],
    recipe: RecipeName = "w4a8",
    settings: Settings = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    workers: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Processes that solve layers; any number gives the same bits."),
    ] = 1,
    threads: Threads = None,
    seed: Seed = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the run that DIR holds.")] = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Compress MODEL and write a run directory."""
    _set_threads(threads)
    chosen = _read_recipe(recipe, settings)
    _check_out(out, force=force)
    torch.manual_seed(seed)  # a model of random weights is the same one next time
    network, example = load_model(model, weights=weights, pretrained=pretrained)
    origin = provenance(model, weights, pretrained=pretrained)
    done = _compress(network, chosen, example, seed=seed, workers=workers)
    done.save(out, force=force)
    if verbose:
        _print_layers(done.layers)
    facts = {"model": origin, "recipe": " ".join([recipe, *(settings or [])]), **_run_facts(done)}
    _print_facts(f"{done.summary.model}, compressed into {out}", facts)
    _print_notes((*_about_weights(origin), *done.summary.warnings), done.summary.skipped)


@app.command()
def inspect(
    model: Model,
    recipe: RecipeName = "w4a8",
    settings: Settings = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    threads: Threads = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Say what compress would do with MODEL."""
    _set_threads(threads)
    chosen = _read_recipe(recipe, settings)
    network, example = load_model(model, weights=weights, pretrained=pretrained)
    origin = provenance(model, weights, pretrained=pretrained)
    with _progress() as progress:
        progress.add_task("reading the network", total=None)
        found = inspect_model(network, example, recipe=chosen)
    if verbose:
        _print_inspected(found)
    facts = {
        "model": origin,
        "recipe": " ".join([recipe, *(settings or [])]),
        **_inspection_facts(found, chosen),
    }
    _print_facts(f"{found.model}, as compress would take it", facts)
    _print_notes((*_about_weights(origin), *found.warnings), found.skipped + found.kept)


@app.command()
def evaluate(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory, --out of compress.")],
    data: Annotated[
        Path, typer.Option(metavar="PATH", help="A folder of CLASS/*.png or *.jpg, or an .npz with x and y.")
    ],
    mean: Annotated[
        str | None,
        typer.Option(metavar="M,M,M", help="Of 8-bit pixels in 0..1 a channel, as in training: 0.485,0.456,0.406"),
    ] = None,
    std: Annotated[str | None, typer.Option(metavar="S,S,S", help="As --mean.")] = None,
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Measure what was lost, on labelled images."""
    _set_threads(threads)
    done = Run.load(directory)
    channels, *size = _image_shape(done)
    images = load_images(data, size=(size[0], size[1]), channels=channels, mean=_numbers(mean), std=_numbers(std))
    with _progress() as progress:
        num_batches = -(-images.num_images // BATCH_SIZE)
        found = run.evaluate(done, progress.track(images, total=num_batches, description="evaluating"))
    change = f"less {mean}, divided by {std}" if mean else "not normalised (see --mean)"
    pixels = f"8-bit ones from 0 to 1, {change}; floating-point ones as they are"
    facts = {"images": str(data), "pixels": pixels, **_evaluation_facts(found)}
    _print_facts(f"{done.summary.model} of {directory}, on {found.num_images} images", facts)


# ---- what the commands share


def _read_recipe(name: str, settings: list[str] | None) -> Recipe:
    recipe = Recipe.load(name) if Path(name).suffix in (".yaml", ".yml") else Recipe.preset(name)
    return recipe.updated(settings or [])


def _check_out(out: Path, *, force: bool) -> None:
    """Refuse before the work what would be refused after it."""
    run.check_free(out, force=force)
    place = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise RunError(f"nothing can be written into {place}; choose another --out")


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


def _numbers(text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is not a list of numbers; write 0.485,0.456,0.406") from None


def _image_shape(done: Run) -> tuple[int, ...]:
    shapes = [g.shape(node)[1:] for node in g.placeholders(done.teacher)]
    if len(shapes) != 1 or len(shapes[0]) != 3:
        found = " and ".join(str(shape) for shape in shapes)
        raise RunError(f"images are (C, H, W), this network takes {found}; use datafree.evaluate() from Python")
    return shapes[0]


def _compress(
    model: nn.Module, recipe: Recipe, example: Tensor, *, seed: int, workers: int = 1, label: str = ""
) -> Run:
    """Compress, with a bar on the terminal that is gone afterwards."""
    pool = serial if workers == 1 else processes(workers)
    with _progress() as progress:
        task = progress.add_task(f"{label}reading the network", total=None)

        def watched_pool(function: Callable, jobs: Iterable) -> Iterator:
            num_layers = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules())
            progress.update(task, description=f"{label}solving layers", total=num_layers)
            yield from pool(function, jobs)
            progress.update(task, description=f"{label}putting the student together")

        def on_done(result: LayerResult) -> None:
            progress.advance(task)

        return pipeline.compress(model, recipe, example, seed=seed, pool=watched_pool, on_done=on_done)


def _progress() -> Progress:
    console = _console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
    )
    return Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal)


# ---- what is shown


def _run_facts(done: Run) -> dict[str, str]:
    s = done.summary
    widths = Counter(layer.bits for layer in done.layers) + Counter({0: s.num_layers - s.num_quantized})
    size, float_size = _bytes(s.bytes), _bytes(s.float_bytes)
    work = f"{_count(s.bit_operations)}, {_share(s.bit_operations, s.float_bit_operations)}"
    errors = {layer.name: layer.error_db for layer in done.layers}
    return {
        "seed": str(s.seed),
        "signal": s.signal,
        "input range": s.input_range,
        "layers": f"{s.num_quantized} of {s.num_layers} quantized",
        "weights": _widths(widths),
        "activations": s.activations,
        "equalization": s.equalization,
        "size": f"{size}, {_share(s.bytes, s.float_bytes)} of {float_size} in float32",
        "multiply-adds": f"{_count(s.macs)} for one image",
        "bit operations": f"{work} of {_count(s.float_bit_operations)} in float32",
        "predicted SQNR": f"{_worst(errors)}; its weights alone, on the signal",
        "time": f"{s.seconds:.1f} s",
        "peak memory": f"{_bytes(s.peak_memory_bytes)}, whole process",
    }


def _inspection_facts(found: Inspection, recipe: Recipe) -> dict[str, str]:
    layers, kept = found.layers, len(found.kept)
    num_quantized = sum(layer.weight_bits is not None for layer in layers)
    outputs = sum(layer.knows_output for layer in layers)
    inputs = sum(layer.knows_input for layer in layers)
    coverage = {f"if {e.mode}": str(e).removeprefix(f"{e.mode}: ") for e in found.equalizations}
    return {
        "input": ", ".join(f"(N, {', '.join(map(str, shape))})" for shape in found.input_shapes),
        "input range": found.input_range,
        "layers": f"{num_quantized} of {len(layers)} would be quantized",
        "weights": _widths(Counter(layer.weight_bits or 0 for layer in layers)),
        "layer inputs": _widths(Counter(layer.input_bits or 0 for layer in layers)),
        "BatchNorm": f"{found.num_batchnorms - kept} fold into a layer, {kept} stay as affine operators",
        "statistics": f"known at the output of {outputs} and the input of {inputs} of {len(layers)} layers",
        "equalization": f"{recipe.equalize}, of these:",
        **coverage,
    }


def _evaluation_facts(found: Evaluation) -> dict[str, str]:
    return {
        "top-1, student": f"{found.top1:.2f} ± {found.top1_error:.2f} %",
        "top-1, float": f"{found.float_top1:.2f} %",
        "lost": f"{found.lost:.2f} ± {found.lost_error:.2f} points",
        "agreement": f"{found.agreement:.2f} % of images get the class that float gives them",
        "SQNR": f"{_worst(found.layer_sqnr_db)}; the whole network running, first {BATCH_SIZE} images",
        "±": f"one standard error over {found.num_images} images; of the loss, by paired differences",
    }


def _print_facts(title: str, facts: dict[str, str]) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 1))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for row in facts.items():
        table.add_row(*row)
    console = _console()
    console.print("\n", Text(title, "bold"), "\n", sep="")
    console.print(table)
    console.print()


def _print_notes(warnings: Sequence[str], skipped: Sequence[Skipped]) -> None:
    """Warnings one by one; what is left as it was, grouped by reason."""
    reasons: dict[str, list[str]] = {}
    for item in skipped:
        reasons.setdefault(item.reason, []).append(item.name)
    for text in warnings:
        _console().print(Text.assemble(("warning: ", "yellow"), text))
    for reason, names in reasons.items():
        _console().print(Text.assemble((f"{len(names)} x ", "yellow"), f"{reason} ({_some(names)})"))


def _about_weights(origin: str) -> tuple[str, ...]:
    hint = "the weights are random, so accuracy means nothing; give --pretrained or --weights FILE"
    return (hint,) if origin.endswith("random weights") else ()


def _print_layers(layers: tuple[LayerResult, ...]) -> None:
    table = _columns("layer", "outputs", "inputs x taps", "bits", "predicted SQNR, dB", "seconds")
    for layer in layers:
        sides = [str(side) for side in layer.weight.shape]
        table.add_row(layer.name, *sides, str(layer.bits), f"{layer.error_db:.1f}", f"{layer.seconds:.2f}")
    _console().print(table)


def _print_inspected(found: Inspection) -> None:
    table = _columns("layer", "weight", "bits, input bits", "statistics", "fed by", left=5)
    for layer in found.layers:
        known = {"input": layer.knows_input, "output": layer.knows_output}
        statistics = " ".join(side for side, has in known.items() if has) or "none"
        shape = "x".join(map(str, layer.weight_shape))
        bits = ", ".join(str(width or "float") for width in (layer.weight_bits, layer.input_bits))
        table.add_row(layer.name, shape, bits, statistics, _some(layer.producers))
    _console().print(table)


def _print_demo(reference: Evaluation, rows: list[tuple[str, Run, Evaluation, Evaluation]]) -> None:
    table = _columns("", "top-1, datafree", "top-1, plain rounding", "size", "of float32", "time")
    float_size = _bytes(rows[0][1].summary.float_bytes)
    table.add_row("float32", f"{reference.top1:.1f} %", "", float_size, "100.0 %", "")
    for preset, done, ours, plain in rows:
        s = done.summary
        cost = (_bytes(s.bytes), _share(s.bytes, s.float_bytes), f"{s.seconds:.1f} s")
        table.add_row(preset, Text(f"{ours.top1:.1f} %", "bold"), f"{plain.top1:.1f} %", *cost)
    ours_error, plain_error = (max(row[side].lost_error for row in rows) for side in (2, 3))
    enough = [preset for preset, _, _, plain in rows if plain.lost <= 2 * plain.lost_error]
    notes = [
        f"top-1: of {reference.num_images} held-out images; standard error of float32 "
        f"{reference.top1_error:.1f} points, of the difference to it at most {ours_error:.1f} (datafree) and "
        f"{plain_error:.1f} (plain rounding). size: weights and biases at their real widths. time: of one "
        "compression on this computer; the first also loads torch's exporter.",
        "plain rounding: the same bits, as many weights to one scale, each weight rounded to the nearest "
        "step between the smallest and the largest; no equalization, no error feedback, no bias correction, "
        "no 8 bits for the first and the last layer. Activations are quantized as by datafree.",
    ]
    if enough:
        notes.append(
            f"At {', '.join(enough)} plain rounding does not fail: it is within two standard errors of "
            "float32, and this small network needs no more there."
        )
    if len(enough) < len(rows):
        notes.append(
            "The network was chosen as one that plain rounding breaks where all weights share a scale, as it breaks "
            "MobileNets; another one, or this one trained again, may lose more or less."
        )
    console = _console()
    console.print("\n", Text("A digits network, compressed without one image", "bold"), sep="")
    console.print(table)
    for note in notes:
        console.print(Padding(note, (0, 2, 1, 2)))


def _columns(*headings: str, left: int = 1) -> Table:
    """A table with these headings; numbers, to the right of the first columns, are aligned right."""
    table = Table(box=box.SIMPLE_HEAD)
    for position, heading in enumerate(headings):
        table.add_column(heading, justify="left" if position < left else "right", overflow="fold")
    return table


def _console(*, stderr: bool = False) -> Console:
    """Strings are names and numbers, never markup."""
    known = (sys.stderr if stderr else sys.stdout).isatty() or "COLUMNS" in os.environ
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, width=None if known else WIDTH)


def _bytes(number: int) -> str:
    return f"{number} B" if number < 1000 else f"{_count(number)}B"


def _count(number: int) -> str:
    """Three digits: 950, 1.21 k, 3.50 M."""
    if number < 1000:
        return str(number)
    power = min(int(math.log10(float(f"{number:.3g}"))) // 3, 4)
    return f"{number / 1000**power:#.3g} {' kMGT'[power]}".replace(". ", " ")


def _share(part: int, whole: int) -> str:
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


def _some(names: Sequence[str]) -> str:
    rest = len(names) - NUM_NAMES
    return ", ".join(names[:NUM_NAMES]) + (f" and {rest} more" if rest > 0 else "")
