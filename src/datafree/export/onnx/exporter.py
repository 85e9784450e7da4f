"""ONNX files as one of the exporters: their options, what is said of them, and what times them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch

from datafree.export.onnx.export import ExportCheck, export_onnx
from datafree.export.onnx.onnxruntime import session
from datafree.export.onnx.writer import ExportError
from datafree.export.written import Option, Written
from datafree.run import Run


@dataclass(frozen=True)
class OnnxOptions:
    """Those of `export_onnx`, and whether the float network is written instead of the student."""

    opset: Annotated[int, Option("version of its operators.", metavar="13|21")] = 21
    int4: Annotated[bool, Option("4-bit weights in 4 bits; smaller, slower.")] = False
    space_to_depth: Annotated[bool, Option("first layer on 2x2 pixels; OpenVINO is faster without.")] = True
    float32: Annotated[bool, Option("write the float network instead, to compare with.", flag="--float")] = False


def write_onnx(run: Run, path: Path, options: OnnxOptions, *, force: bool) -> Written:
    """Write and check as `export_onnx` does."""
    shown = replace(run, student=run.teacher) if options.float32 else run
    check = export_onnx(
        shown, path, opset=options.opset, int4=options.int4, space_to_depth=options.space_to_depth, force=force
    )
    return Written(_findings(check), check.notes)


def _findings(check: ExportCheck) -> dict[str, str]:
    """The file, as it ran."""
    same = "no logits to compare" if check.agreement is None else f"{check.agreement:.1f} % equal classes"
    names = Counter(name.split(" ")[0] for name in check.float_nodes)
    return {
        "file against student": f"{check.sqnr_db:.1f} dB, {same}, largest difference {check.largest_difference:.3g}",
        "student against float": f"{check.quantization_db:.1f} dB",
        "compared on": f"{check.num_probes} probe images, in ONNX Runtime",
        "in float there": ", ".join(f"{n} {name}" for name, n in names.items()) or "nothing",
    }


def open_onnx(path: Path, threads: int, batch: int) -> Callable[[], object]:
    """A function that runs the file once on random images.

    Raises:
        ExportError: an input has open sizes besides the batch; ONNX Runtime does not take the file.
    """
    opened, generator = session(path, threads=threads), torch.Generator().manual_seed(0)
    shapes = {item.name: (batch, *item.shape[1:]) for item in opened.get_inputs()}
    if any(not isinstance(side, int) for shape in shapes.values() for side in shape):
        raise ExportError(f"its inputs have open sizes besides the batch: {shapes}")
    feed = {name: torch.randn(shape, generator=generator).numpy() for name, shape in shapes.items()}
    return lambda: opened.run(None, feed)
