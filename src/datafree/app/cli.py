"""The command line, `datafree demo | compress | inspect | evaluate | export | bench`; the only file that prints."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text
from torch import Tensor, nn

from datafree import graph as g
from datafree import pipeline, run
from datafree.app import tables
from datafree.app.export_options import options_for, with_exporter_options
from datafree.app.given_images import load_unlabelled, write_images
from datafree.app.inspect import inspect as inspect_model
from datafree.app.labelled_images import BATCH_SIZE, load_images
from datafree.app.sentences import forecasts, losses
from datafree.app.verdict import time_beside_float, verdict
from datafree.execution import processes, serial
from datafree.export import EXPORTERS, exporter_for, exporters_by_suffix
from datafree.models import Normalization, files_of, load_model, normalization, provenance, range_of
from datafree.recipe import TARGETS, Recipe, presets
from datafree.records import InputRange, LayerResult
from datafree.run import Run, RunError, evaluate_models, with_estimate
from datafree.solve import LayerError

WIDTH = 100  # columns, where there is no terminal to ask
DEMO_PRESETS = ("w8a8-tensor", "w8a8", "w4a8", "w4a4")
PLAIN_ROUNDING = {
    "equalize": "off",
    "solve": {"method": "nearest", "clip": False, "bias_correction": False, "mend": False},
}
EXPORTED = ", ".join(f"NAME{row.suffix} ({name})" for name, row in EXPORTERS.items())
PIXELS = "pixels.json"  # in a run directory: how the network's pixels are normalised, where that is published
UsageError: Any = typer.BadParameter.__base__  # click's own, which older typer imports and newer typer contains

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
        help="timm:NAME, torchvision:NAME, demo, a file NAME.onnx, or pkg.module:factory, found from the current "
        "directory.",
    ),
]
Weights = Annotated[Path | None, typer.Option(metavar="FILE", help=".safetensors, or .pth that holds tensors only.")]
InputShape = Annotated[
    str | None,
    typer.Option("--input", metavar="N,C,H,W", help="Shape of an input, where a file leaves its sides open."),
]
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
For = Annotated[
    str | None,
    typer.Option(
        "--target", metavar="NAME", help=f"The runtime it is for, as --set target=NAME: {', '.join(TARGETS)}."
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        metavar="M,M,M",
        help="Of 8-bit pixels in 0..1 a channel, as in training: 0.485,0.456,0.406. Left out: as published "
        "with a timm or torchvision network; else none, and compress looks at the first layers.",
    ),
]
Std = Annotated[str | None, typer.Option(metavar="S,S,S", help="As --mean.")]
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
    vars(export)["__signature__"] = with_exporter_options(EXPORT)  # of the exporters there are now
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
        usage: Any = error
        command = usage.ctx.command_path if usage.ctx else "datafree"
        return 2, f"{usage.format_message().rstrip('.')}; see {command} --help"
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
    rows, made = [], None
    for preset in DEMO_PRESETS:
        recipe = Recipe.preset(preset)
        plain = Recipe(**{**recipe.model_dump(), **PLAIN_ROUNDING, "signal": {"kind": "propagated"}})
        ours = _compress(model, recipe, images[:1], seed=seed, label=f"{preset}: ", images=made)
        made = ours if ours.images else None
        other = _compress(model, plain, images[:1], seed=seed, label=f"{preset}, plain rounding: ")
        scores = (evaluate_models(r.student, model, data, layers=False) for r in (ours, other))
        rows.append((preset, ours, *scores))
    _show(tables.demo_table(evaluate_models(model, model, data, layers=False), rows))


@app.command()
def compress(
    model: Model,
    out: Annotated[
        Path,
        typer.Option(metavar="FILE|DIR", help=f"What to write: {EXPORTED}; or a run directory, from which all follow."),
    ],
    recipe: RecipeName = "w4a8",
    settings: Settings = None,
    target: For = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    input_shape: InputShape = None,
    mean: Mean = None,
    std: Std = None,
    workers: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Processes that solve layers; any number gives the same bits."),
    ] = 1,
    threads: Threads = None,
    seed: Seed = 0,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Use these instead of making images: another run of the same network, a folder of .png or .jpg, .npy "
            "or .npz; repeatable.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where images are made.")] = "cpu",
    predict: Annotated[
        bool, typer.Option("--estimate/--no-estimate", help="Predict the agreement with the float network.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE, or the run that DIR holds.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the same command where it was stopped, from its .part folder.")
    ] = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Compress MODEL into a file that was checked and timed, or into a run directory.

    Until that is there, the work is kept beside it in a folder that ends in .part.
    """
    _set_threads(threads)
    settings = [*(settings or []), *([f"target={target}"] if target else [])]
    chosen = _read_recipe(recipe, settings)
    is_file = out.suffix in exporters_by_suffix()
    _check_out(out, Path(model), force=force, is_file=is_file)
    torch.manual_seed(seed)  # a model of random weights is the same one next time
    network, example = load_model(model, weights=weights, pretrained=pretrained, input_shape=_shape(input_shape))
    used = _given(_numbers(mean), _numbers(std))
    known = used and _range_given(used, example if isinstance(example, torch.Tensor) else example[0])
    origin = provenance(model, weights, pretrained=pretrained)
    pixels = used or normalization(network)
    kept = _images_given(images or [], network, example, pixels)
    if isinstance(kept, tuple):
        chosen = chosen.updated(["signal.kind=loader"])
    unfinished = _unfinished(out, resume=resume)
    done = _compress(
        network, chosen, example, seed=seed, workers=workers, images=kept, device=device, predict=predict,
        resume=unfinished, on_range=known,
    )  # fmt: skip
    warnings = (*tables.about_weights(origin), *done.summary.warnings, *losses(done.summary))
    if is_file:
        _deliver(done, out, warnings, force=force)
    else:
        done.save(out, force=force)
        _write_pixels(out, pixels)
    shutil.rmtree(unfinished, ignore_errors=True)
    if verbose:
        _show(tables.layers_table(done.layers))
    if verbose or not is_file:
        facts = {"model": origin, "recipe": " ".join([recipe, *settings]), **tables.run_facts(done)}
        _show(tables.facts_table(f"{done.summary.model}, compressed into {out}", facts))
        _show(*tables.notes(warnings, done.summary.skipped))


@app.command()
def inspect(
    model: Model,
    recipe: RecipeName = "w4a8",
    settings: Settings = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    input_shape: InputShape = None,
    threads: Threads = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Say what compress would do with MODEL."""
    _set_threads(threads)
    chosen = _read_recipe(recipe, settings)
    network, example = load_model(model, weights=weights, pretrained=pretrained, input_shape=_shape(input_shape))
    origin = provenance(model, weights, pretrained=pretrained)
    with _progress() as progress:
        progress.add_task("reading the network", total=None)
        found = inspect_model(network, example, recipe=chosen)
    if verbose:
        _show(tables.inspected_table(found))
    named = {"model": origin, "recipe": " ".join([recipe, *(settings or [])])}
    facts = {**named, **tables.inspection_facts(found, chosen)}
    _show(tables.facts_table(f"{found.model}, as compress would take it", facts))
    warnings = (*tables.about_weights(origin), *found.warnings, *forecasts(found.forecast))
    _show(*tables.notes(warnings, found.skipped + found.kept))


@app.command()
def evaluate(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory, --out of compress.")],
    data: Annotated[
        Path, typer.Option(metavar="PATH", help="A folder of CLASS/*.png or *.jpg, or an .npz with x and y.")
    ],
    mean: Mean = None,
    std: Std = None,
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Measure what was lost, on labelled images."""
    _set_threads(threads)
    done = Run.load(directory)
    channels, *size = _image_shape(done)
    used = _given(_numbers(mean), _numbers(std)) or _read_pixels(directory, channels)
    mean_std = {"mean": used.mean, "std": used.std} if used else {}
    images = load_images(data, size=(size[0], size[1]), channels=channels, **mean_std)
    with _progress() as progress:
        num_batches = -(-images.num_images // BATCH_SIZE)
        found = run.evaluate(done, progress.track(images, total=num_batches, description="evaluating"))
    facts = {"images": str(data), "pixels": tables.pixels_text(used), **tables.evaluation_facts(found)}
    _show(tables.facts_table(f"{done.summary.model} of {directory}, on {found.num_images} images", facts))


@app.command()
def export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory, --out of compress.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help=f"{EXPORTED}.")],
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.")] = False,
    threads: Threads = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also list every node that is no integer kernel where it runs.")
    ] = False,
    debug: Debug = False,
    **given: Any,
) -> None:
    """Write the student as one file, run what was written, and say how near it is."""
    _set_threads(threads)
    done = Run.load(directory)
    written = exporter_for(file).write(done, file, options_for(file, given), force=force)
    facts = tables.file_facts(done, file, written)
    title = f"{done.summary.model} of {directory}, written to {file}"
    if verbose:
        _show(*map(Text, written.details))
    _show(tables.facts_table(title, facts), *tables.notes(written.notes, ()))


EXPORT = signature(export, eval_str=True)


@app.command()
def images(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory, --out of compress.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="What to write: images.npy, and a .png of each.")],
    debug: Debug = False,
) -> None:
    """Write the images that a run made, for other tools."""
    count = write_images(Run.load(directory), out)
    _show(Text(f"{count} images of {directory} are in {out}"))


@app.command()
def bench(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help=f"Of `datafree export`: {EXPORTED}.")],
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="Of each runtime.")] = 1,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Images in a run.")] = 1,
    turns: Annotated[int, typer.Option(min=1, metavar="N", help="Rounds in which every file runs.")] = 20,
    input_shape: InputShape = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    debug: Debug = False,
) -> None:
    """Time files side by side; the first is what the others are compared with."""
    from datafree.app.latency import bench as timed

    with _progress() as progress:
        progress.add_task("taking turns", total=None)
        size = (_shape(input_shape) or (1,))[1:]
        found = timed(files, threads=threads, batch=batch, turns=turns, size=size)
    if as_json:
        print(json.dumps([asdict(item) for item in found], indent=2))
    else:
        _show(tables.latency_table(found))


# ---- what the commands share


def _read_recipe(name: str, settings: list[str] | None) -> Recipe:
    recipe = Recipe.load(name) if Path(name).suffix in (".yaml", ".yml") else Recipe.preset(name)
    return recipe.updated(settings or [])


def _check_out(out: Path, model: Path, *, force: bool, is_file: bool) -> None:
    """Refuse before the work what would be refused after it."""
    if is_file and out.exists():
        if any(file.exists() and out.samefile(file) for file in files_of(model)):
            raise RunError(f"{out} is the network that is compressed; choose another --out")
        if out.is_dir() or not force:
            raise RunError(f"{out} exists; choose another --out, or --force to replace a file")
    if not is_file:
        run.check_free(out, force=force)
    place = next(p for p in (*([] if is_file else [out.absolute()]), *out.absolute().parents) if p.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise RunError(f"nothing can be written into {place}; choose another --out")


def _deliver(done: Run, file: Path, warnings: Sequence[str], *, force: bool) -> None:
    """Write, check and time a file, and say in a few lines what it is."""
    exporter, options = exporter_for(file), options_for(file, {})
    with _progress() as progress:
        task = progress.add_task(f"writing {file}", total=None)
        written = exporter.write(done, file, options, force=force)
        progress.update(task, description="timing it beside float")
        speed = time_beside_float(done, file, exporter, options, torch.get_num_threads())
    found = verdict(done, file, written, speed, warnings)
    _show(tables.facts_table(f"{done.summary.model}, written to {file}", found))


def _unfinished(out: Path, *, resume: bool) -> Path:
    """The folder of work under way: there already with --resume, else a new one."""
    folder = out.with_name(f"{out.name}.part")
    if resume and not folder.is_dir():
        raise RunError(f"there is nothing to resume: {folder} does not exist; leave --resume out")
    if not resume and folder.is_dir():
        if not (folder / "job.json").is_file():
            raise RunError(f"{folder} is in the way and holds no unfinished work; choose another --out")
        shutil.rmtree(folder)
    return folder


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


def _shape(text: str | None) -> tuple[int, ...] | None:
    numbers = _numbers(text)
    if numbers is not None and not all(number > 0 and number == int(number) for number in numbers):
        raise ValueError(f"{text!r} is not a shape; write 1,3,224,224")
    return None if numbers is None else tuple(map(int, numbers))


def _numbers(text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is not a list of numbers; write 0.485,0.456,0.406") from None


def _given(mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Normalization | None:
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise ValueError("mean and std go together: give both, or neither")
    return Normalization(mean, std, "--mean, --std")


def _images_given(
    paths: Sequence[Path], network: nn.Module, example: Tensor | tuple[Tensor, ...], pixels: Normalization | None
) -> Run | tuple[Tensor, ...] | None:
    """A run whose images are used as it used them; or images of several places, one behind the other."""
    runs = {path: Run.load(path) for path in paths if (path / "summary.json").is_file()}
    if len(paths) < 2 and len(runs) == len(paths):
        return next(iter(runs.values()), None)
    if not isinstance(example, Tensor):
        raise ValueError("the network has several inputs; give their images from Python")
    fingerprint = g.fingerprint(g.trace(network, example)) if runs else ""
    shape = tuple(example.shape[1:])
    parts = [
        run.images_of(runs[path], fingerprint)[0] if path in runs else load_unlabelled(path, shape=shape, used=pixels)
        for path in paths
    ]
    return (torch.cat(parts),)


def _range_given(used: Normalization, example: Tensor) -> InputRange:
    """What the network sees of natural images that are normalised so."""
    channels = example.shape[1]
    if {len(used.mean), len(used.std)} != {channels} or min(used.std) <= 0:
        raise ValueError(
            f"mean {used.mean} and std {used.std} do not fit the network's {channels} input channels; give one number "
            "for each channel, and std above 0"
        )
    return range_of(used)


def _write_pixels(directory: Path, published: Normalization | None) -> None:
    if published is not None:
        (directory / PIXELS).write_text(json.dumps(asdict(published), indent=2))


def _read_pixels(directory: Path, num_channels: int) -> Normalization | None:
    """The published normalisation of the network that was compressed, where there is one for its channels."""
    if not (directory / PIXELS).is_file():
        return None
    try:
        fields = json.loads((directory / PIXELS).read_text())
        found = Normalization(tuple(map(float, fields["mean"])), tuple(map(float, fields["std"])), fields["source"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{directory / PIXELS} is damaged: {error}; give --mean and --std, or compress again") from None
    return found if len(found.mean) == len(found.std) == num_channels else None


def _image_shape(done: Run) -> tuple[int, ...]:
    shapes = [g.shape(node)[1:] for node in g.placeholders(done.teacher)]
    if len(shapes) != 1 or len(shapes[0]) != 3:
        found = " and ".join(str(shape) for shape in shapes)
        raise RunError(f"images are (C, H, W), this network takes {found}; use datafree.evaluate() from Python")
    return shapes[0]


def _compress(
    model: nn.Module,
    recipe: Recipe,
    example: Tensor | tuple[Tensor, ...],
    *,
    workers: int = 1,
    label: str = "",
    predict: bool = False,
    **asked: Any,
) -> Run:
    """Compress, with a bar on the terminal that is gone afterwards; what is asked goes on to `datafree.compress`."""
    pool = serial if workers == 1 else processes(workers)
    num_layers = sum(isinstance(module, nn.modules.conv._ConvNd | nn.Linear) for module in model.modules()) or None
    with _progress() as progress:
        task = progress.add_task(f"{label}reading the network", total=None)
        solved = itertools.count(1)

        def on_done(result: LayerResult) -> None:
            progress.update(task, description=f"{label}solving layers", total=num_layers, completed=next(solved))

        def on_step(what: str, done: int, total: int) -> None:
            progress.update(task, description=f"{label}{what}", total=total, completed=done)

        done = pipeline.compress(model, recipe, example, pool=pool, on_done=on_done, on_step=on_step, **asked)
        if predict:
            progress.update(task, description=f"{label}estimating what was lost", total=None)
            done = with_estimate(done)
        return done


# ---- what is shown


def _show(*shown: RenderableType) -> None:
    for item in shown:
        _console().print(item)


def _console(*, stderr: bool = False) -> Console:
    """Strings are names and numbers, never markup."""
    known = (sys.stderr if stderr else sys.stdout).isatty() or "COLUMNS" in os.environ
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, width=None if known else WIDTH)


def _progress() -> Progress:
    console = _console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal)
