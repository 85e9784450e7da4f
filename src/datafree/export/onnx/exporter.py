"""ONNX files as one of the exporters: their options, what is said of them, and what times them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import fx

from datafree.export.onnx.check import ExportCheck
from datafree.export.onnx.export import check_packages, export_onnx
from datafree.export.onnx.onnxruntime import session
from datafree.export.onnx.optimized import NodeShare
from datafree.export.onnx.translate import translate
from datafree.export.onnx.writer import ExportError
from datafree.export.written import Option, Written
from datafree.recipe import Recipe
from datafree.run import Run

NUM_OPERATORS = 4  # named of a kind


@dataclass(frozen=True)
class OnnxOptions:
    """Those of `export_onnx`, and whether the float network is written instead of the student."""

    opset: Annotated[int | None, Option("version of its operators; left out, the target's.", metavar="13|21")] = None
    int4: Annotated[bool, Option("4-bit weights in 4 bits; smaller, slower.")] = False
    space_to_depth: Annotated[bool, Option("first layer on 2x2 pixels; OpenVINO is faster without.")] = True
    into: Annotated[str, Option("where the .onnx file lies now that the network was read from.", metavar="FILE")] = ""
    new_graph: Annotated[bool, Option("a graph of its own, though the network was read from an .onnx file.")] = False
    float32: Annotated[bool, Option("write the float network instead, to compare with.", flag="--float")] = False


def write_onnx(run: Run, path: Path, options: OnnxOptions, *, force: bool) -> Written:
    """Write and check as `export_onnx` does."""
    shown = replace(run, student=run.teacher) if options.float32 else run
    chosen = {name: value for name, value in vars(options).items() if name != "float32"}
    check = export_onnx(shown, path, force=force, **chosen)
    return Written(_findings(check), check.notes, tuple(map(_described, _dearest_first(check.nodes))))


def check_onnx(graph: fx.GraphModule, recipe: Recipe, source: str) -> None:
    """Refuse a network whose student could not be written; into the file it was read from everything can.

    Raises:
        ExportError: packages are missing, or an operator that ONNX lacks; names it.
    """
    check_packages()
    if not source:
        translate(graph, opset=recipe.runtime.opset, target=recipe.runtime)


def _findings(check: ExportCheck) -> dict[str, str]:
    """The file, as it ran."""
    same = "no logits to compare" if check.agreement is None else f"{check.agreement:.1f} % equal classes"
    return {
        "file against student": f"{check.sqnr_db:.1f} dB, {same}, largest difference {check.largest_difference:.3g}",
        "student against float": f"{check.quantization_db:.1f} dB",
        "compared on": f"{check.num_probes} probe images, in ONNX Runtime",
        "in float there": _counted([node for node in check.nodes if node.kind == "float"]),
        "moved or converted": _counted([node for node in check.nodes if node.kind == "moves"]),
    }


def _counted(nodes: Sequence[NodeShare]) -> str:
    """Operators, the dearest first, and the share of the time that all take."""
    counts = Counter(node.operator for node in _dearest_first(nodes))
    if not counts:
        return "nothing"
    named = [f"{count} {operator}" for operator, count in counts.items()]
    rest = sum([*counts.values()][NUM_OPERATORS:])
    named = [*named[:NUM_OPERATORS], *([f"{rest} more"] if rest else [])]
    return f"{', '.join(named)}: {sum(node.share for node in nodes):.1f} % of the time"


def _dearest_first(nodes: Sequence[NodeShare]) -> list[NodeShare]:
    return sorted(nodes, key=lambda node: -node.share)


def _described(node: NodeShare) -> str:
    what = "in float" if node.kind == "float" else "moves or converts"
    return f"{node.share:.1f} % of the time: {node}, {what}"


def open_onnx(path: Path, threads: int, batch: int, size: tuple[int, ...] | None) -> Callable[[], object]:
    """A function that runs the file once on random images.

    Raises:
        ExportError: an input has open sizes besides the batch, and none were given; ONNX Runtime refuses the file.
    """
    opened, generator = session(path, threads=threads), torch.Generator().manual_seed(0)
    shapes = {item.name: _closed(item.name, item.shape, batch, size or ()) for item in opened.get_inputs()}
    feed = {name: torch.randn(shape, generator=generator).numpy() for name, shape in shapes.items()}
    return lambda: opened.run(None, feed)


def _closed(name: str, sides: Sequence[Any], batch: int, size: tuple[int, ...]) -> list[int]:
    """An input's sides: the file's own, and where these are open those given, channels first or last."""
    for rest in (tuple(sides[1:]), size, (*size[1:], *size[:1])):
        shape = [own if isinstance(own, int) else side for own, side in zip(sides, (batch, *rest), strict=False)]
        known = all(isinstance(side, int) for side in shape)
        if known and len(rest) + 1 == len(sides) and list(rest) == shape[1:]:
            return shape
    raise ExportError(f"the input {name} is {list(sides)}; say at which size, as in --input 1,3,224,224")
