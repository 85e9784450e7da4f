"""All exporters: what their files are called, how they are written and checked, and what runs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import fx

from datafree.export.onnx.exporter import OnnxOptions, check_onnx, open_onnx, write_onnx
from datafree.export.packed.exporter import PackedOptions, open_packed, write_packed
from datafree.export.written import NoOptions, Written
from datafree.recipe import Recipe


@dataclass(frozen=True)
class Runtime:
    """What runs a file where `datafree bench` times it.

    name: as shown; one that says "simulated" does not compute with integers, so that its speed says nothing.
    open: function(path, threads, batch, size) -> function that runs the file once on random images; from a module that
        can be imported, for every file is timed in a process of its own. size: (C, H, W) of an input whose sides the
        file leaves open, None = it has none such.
    """

    name: str
    open: Callable[[Path, int, int, tuple[int, ...] | None], Callable[[], object]]


def accept(graph: fx.GraphModule, recipe: Recipe, source: str) -> None:
    """The `check` of an exporter that writes every network."""


@dataclass(frozen=True)
class Exporter:
    """One kind of file.

    suffix: of its files, with the dot; no two exporters have the same.
    write: function(run, path, options, force=) that writes the student and checks what it wrote; it raises a ValueError
        and leaves nothing where the path is taken and not `force`, or the file is not the student.
    options: a frozen dataclass with defaults, each field described by an `Option`.
    check: function(graph of the float network, recipe, source) that raises a ValueError where `write` would refuse its
        student; before anything takes long. source: the file the network was read from, "" = none.
    runtime: None = it is not timed here.
    """

    suffix: str
    write: Callable[..., Written]
    options: type = NoOptions
    check: Callable[[fx.GraphModule, Recipe, str], None] = accept
    runtime: Runtime | None = None


EXPORTERS: dict[str, Exporter] = {
    "ONNX": Exporter(".onnx", write_onnx, OnnxOptions, check_onnx, Runtime("ONNX Runtime", open_onnx)),
    "packed": Exporter(".safetensors", write_packed, PackedOptions, runtime=Runtime("PyTorch, simulated", open_packed)),
}


def exporters_by_suffix() -> dict[str, Exporter]:
    """The table by suffix.

    Raises:
        ValueError: two exporters write files of the same suffix.
    """
    found: dict[str, Exporter] = {}
    for name, exporter in EXPORTERS.items():
        if found.setdefault(exporter.suffix, exporter) is not exporter:
            raise ValueError(
                f"exporter {name!r} writes {exporter.suffix} files, as another one does; give it another suffix"
            )
    return found


def exporter_for(path: Path) -> Exporter:
    """The exporter of a file, by its suffix.

    Raises:
        ValueError: there is none; lists the suffixes there are.
    """
    known = exporters_by_suffix()
    if path.suffix not in known:
        allowed = " or ".join(f"a {suffix}" for suffix in known)
        raise ValueError(f"{path} ends in {path.suffix or 'nothing'}; write {allowed} file")
    return known[path.suffix]
