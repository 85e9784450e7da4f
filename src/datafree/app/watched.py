"""Compression with a bar on the terminal."""

from __future__ import annotations

import itertools
from typing import Any

from torch import Tensor, nn

from datafree import pipeline
from datafree.app.console import progress_bar
from datafree.execution import processes, serial
from datafree.recipe import Recipe
from datafree.records import LayerResult
from datafree.run import Run, with_estimate


def compress_watched(
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
    with progress_bar() as progress:
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
