"""What a command writes: refused before the work where it could not be written after it; written, checked and timed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import fx

from datafree import run
from datafree.app.export_options import options_for
from datafree.app.progress import TIMING, WRITING
from datafree.app.verdict import time_beside_float, verdict
from datafree.execution import UnwritableError, check_writable
from datafree.export import exporter_for, exporters_by_suffix
from datafree.models import files_of
from datafree.progress import JobProgress
from datafree.recipe import Recipe
from datafree.run import Run, RunError, graph_to_json

FILES_OF_OTHERS = (".tflite", ".pt", ".pth", ".pt2", ".pte", ".ckpt", ".h5", ".keras", ".pb", ".ort", ".xml", ".engine",
                   ".mlmodel", ".mlpackage", ".npz", ".zip")  # fmt: skip


def check_out(out: Path, model: Path, *, force: bool, is_file: bool) -> None:
    """Refuse before the work what would be refused after it."""
    if is_file and out.exists():
        if any(file.exists() and out.samefile(file) for file in files_of(model)):
            raise RunError(f"{out} is the network that is compressed; choose another --out")
        if out.is_dir() or not force:
            raise RunError(f"{out} exists; choose another --out, or --force to replace a file")
    if not is_file:
        if out.suffix in FILES_OF_OTHERS:
            exporter_for(out)  # says which there are; a folder of that name would surprise
        run.check_free(out, force=force)
    place = next(p for p in (*([] if is_file else [out.absolute()]), *out.absolute().parents) if p.exists())
    if not place.is_dir():
        raise RunError(f"nothing can be written into {place}; choose another --out")
    try:
        check_writable(place)
    except UnwritableError:
        raise RunError(f"nothing can be written into {place}; choose another --out") from None


def check_writes(out: Path, recipe: Recipe, model: str, teacher: fx.GraphModule) -> None:
    """Refuse before the work a network that could not be written after it."""
    if out.suffix in exporters_by_suffix():
        exporter_for(out).check(teacher, recipe, model if model.endswith(".onnx") else "")
    else:
        graph_to_json(teacher)


def write_file(done: Run, file: Path, warnings: Sequence[str], progress: JobProgress, *, force: bool) -> dict[str, str]:
    """Write, check and time a file; what it is, in a few facts."""
    exporter, options = exporter_for(file), options_for(file, {})
    progress.on_step(WRITING, 0, 0)
    written = exporter.write(done, file, options, force=force)
    progress.on_step(TIMING, 0, 0)
    speed = time_beside_float(done, file, exporter, options, torch.get_num_threads())
    return verdict(done, file, written, speed, warnings)
