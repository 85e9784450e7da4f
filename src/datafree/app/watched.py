"""Compression while somebody watches."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Any

from torch import Tensor, nn

from datafree import pipeline
from datafree.app.arguments import PoolKind
from datafree.app.console import note
from datafree.app.progress import ESTIMATING
from datafree.execution import on_ray, processes, serial
from datafree.progress import JobProgress
from datafree.recipe import Recipe
from datafree.run import Run, with_estimate
from datafree.solve import Pool


def pool_of(kind: PoolKind, workers: int | None, address: str | None) -> Pool:
    """Where layers are solved, as the command line says it.

    Raises:
        ValueError: an address without Ray, or what `on_ray` refuses.
    """
    if kind is PoolKind.ray:
        return on_ray(address, num_workers=workers)
    if address is not None:
        raise ValueError(f"--address {address} is of a Ray cluster; add --pool ray")
    return serial if workers in (None, 1) else processes(workers, on_lost=lambda lost: note(str(lost)))


def compress_watched(
    progress: JobProgress,
    model: nn.Module,
    recipe: Recipe,
    example: Tensor | tuple[Tensor, ...],
    *,
    pool: Pool = serial,
    effort: str | None = None,
    **asked: Any,
) -> Run:
    """Compress, and say how far it is; what is asked goes on to `datafree.compress`.

    Args:
        effort: of the estimate; None = none.
    """
    watched = {"on_step": progress.on_step, "on_plan": progress.on_plan}
    with redirect_stdout(sys.stderr):  # where Ray tells of lost workers
        done = pipeline.compress(model, recipe, example, pool=pool, **watched, **asked)
    if effort:
        progress.on_step(ESTIMATING, 0, 0)
        done = with_estimate(done, effort=effort)
    return done
