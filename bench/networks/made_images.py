"""Images that a recipe's signal makes of a network: made once for each network, signal and seed, then kept."""

from __future__ import annotations

import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.rows import STARTED_AT
from datafree import Recipe
from datafree.execution.atomic import atomic_write
from datafree.execution.mac_counter import count_macs
from datafree.execution.resume import Execution, OnStep, ignore_steps
from datafree.graph.capture import trace
from datafree.models.load import input_range
from datafree.signals import make_signal
from datafree.teacher.batchnorm import fold_batchnorm_

CACHE = Path(tempfile.gettempdir()) / "datafree-bench"


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
        source = make_signal(teacher, stats, recipe.signal, seed=seed, input_range=known, work=work)
    print(f"  images: {source.num_images}, distance from BatchNorm {source.distance}", flush=True)
    seconds = time.perf_counter() - start
    return Images(source.inputs, spent.macs, seconds, torch.get_num_threads(), STARTED_AT)
