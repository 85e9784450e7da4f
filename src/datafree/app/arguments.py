"""The arguments that commands share, and what is read from them."""

from __future__ import annotations

import math
import os
import re
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from datafree.app.console import be_quiet
from datafree.recipe import TARGETS, Recipe, presets

if TYPE_CHECKING:  # torch is not loaded to show a command's help
    from datafree.models import Normalization

EXPORTED = "NAME.onnx (ONNX), NAME.safetensors (packed)"  # as in datafree.export.EXPORTERS

_MODEL = typer.Argument(
    metavar="MODEL",
    help="timm:NAME, torchvision:NAME, demo, a file NAME.onnx, or pkg.module:factory, found from the current "
    "directory.",
)
Model = Annotated[str, _MODEL]
Models = Annotated[list[str], _MODEL]
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


def within_cpus(number: int | None) -> int | None:
    """A number of threads or processes: more than there are CPUs only wait for each other."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if number is not None and number > here:
        raise typer.BadParameter(f"{number} is more than the {here} CPUs that are free to use here; give 1 to {here}")
    return number


Threads = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", callback=within_cpus, help="Threads of torch, at most the number of CPUs."),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        callback=within_cpus,
        help="Processes that solve layers, at most the number of CPUs; any number gives the same bits. Left out: this "
        "one alone, or all CPUs of --pool ray.",
    ),
]


class PoolKind(str, Enum):
    """What processes are started by."""

    processes, ray = "processes", "ray"


PoolName = Annotated[PoolKind, typer.Option("--pool", help="Workers on this machine, or of a Ray cluster.")]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Of the Ray cluster. Left out: that of RAY_ADDRESS; without it, one is started here for this command.",
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Stay within about so much memory, as in 2GB: images go in smaller parts, and what is under way waits in "
        "files beside --out. Takes longer. Each of --workers takes its own beside it.",
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Of everything random.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also list every layer.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", callback=be_quiet, help="Print nothing but errors, and what --json asks for.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def read_recipe(name: str, settings: list[str] | None) -> Recipe:
    recipe = Recipe.load(name) if Path(name).suffix in (".yaml", ".yml") else Recipe.preset(name)
    return recipe.updated(settings or [])


def set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    sides = [side.strip() for side in text.split(",")]
    if not all(side.isdecimal() and int(side) for side in sides):
        raise ValueError(f"{text!r} is not a shape; write 1,3,224,224")
    return tuple(map(int, sides))


UNITS = {"MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(text: str | None) -> int | None:
    """Of "2GB" or "800 MiB"."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([MG]i?B)\s*", text, re.IGNORECASE)
    if found is None or not float(found[1]):
        raise ValueError(f"{text!r} is no amount of memory; write 800MB or 2GB")
    return int(float(found[1]) * UNITS[found[2].upper()])


def parse_numbers(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{text!r} is not a list of numbers; write 0.485,0.456,0.406")
    return numbers


def given_pixels(mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Normalization | None:
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise ValueError("mean and std go together: give both, or neither")
    from datafree.models import Normalization

    return Normalization(mean, std, "--mean, --std")
