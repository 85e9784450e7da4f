"""Compression while somebody watches."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from datafree import pipeline
from datafree.app.console import note
from datafree.app.progress import ESTIMATING
from datafree.execution import processes, serial
from datafree.progress import JobProgress
from datafree.recipe import Recipe
from datafree.run import Run, with_estimate


def compress_watched(
    progress: JobProgress,
    model: nn.Module,
    recipe: Recipe,
    example: Tensor | tuple[Tensor, ...],
    *,
    workers: int = 1,
    effort: str | None = None,
    **asked: Any,
) -> Run:
    """Compress, and say how far it is; what is asked goes on to `datafree.compress`.

    Args:
        effort: of the estimate; None = none.
    """
    pool = serial if workers == 1 else processes(workers, on_lost=lambda lost: note(str(lost)))
    watched = {"on_step": progress.on_step, "on_plan": progress.on_plan}
    done = pipeline.compress(model, recipe, example, pool=pool, **watched, **asked)
    if effort:
        progress.on_step(ESTIMATING, 0, 0)
        done = with_estimate(done, effort=effort)
    return done
