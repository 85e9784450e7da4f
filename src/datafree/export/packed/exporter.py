"""Packed files as one of the exporters: their option, and what times them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

from datafree import graph as g
from datafree.export.packed.packed import load, save
from datafree.export.written import Option, Written
from datafree.run import Run, lost_inputs


@dataclass(frozen=True)
class PackedOptions:
    """Those of `save`."""

    compress: Annotated[bool, Option("squeeze the file with zlib, too.")] = False


def write_packed(run: Run, path: Path, options: PackedOptions, *, force: bool) -> Written:
    """Write as `save` does; of the file there is nothing to say, for it is bit for bit the student."""
    save(run, path, compress=options.compress, force=force)
    return Written(notes=tuple(lost_inputs(run.summary.coarse_inputs)))


def open_packed(path: Path, threads: int, batch: int, size: tuple[int, ...] | None) -> Callable[[], object]:
    """A function that runs the student once on random images, as PyTorch simulates it in float."""
    torch.set_num_threads(threads)
    student, generator = load(path), torch.Generator().manual_seed(0)
    inputs = [torch.randn(batch, *g.shape(node)[1:], generator=generator) for node in g.placeholders(student)]

    def run_once() -> object:
        with torch.no_grad():
            return student(*inputs)

    return run_once
