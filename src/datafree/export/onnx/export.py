"""A run as an ONNX file that integer runtimes fuse: written, checked, run, and compared with the student."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datafree.execution import atomic_write
from datafree.export.onnx.check import ExportCheck, check_file
from datafree.export.onnx.conv_pads import fold_paddings
from datafree.export.onnx.fusion import QUANTIZE
from datafree.export.onnx.pad_channels import pad_channels
from datafree.export.onnx.source_file import SourceFile, open_source
from datafree.export.onnx.space_to_depth import fold_pixels
from datafree.export.onnx.target_rules import violations
from datafree.export.onnx.translate import translate
from datafree.export.onnx.write_back import write_back
from datafree.export.onnx.writer import IR_VERSIONS, ExportError, remove_unread
from datafree.export.onnx.written_files import LARGEST, data_file, num_bytes, write_model
from datafree.extras import install
from datafree.models import files_of
from datafree.recipe import Propagated
from datafree.run import Run, lost_inputs
from datafree.signals import make_signal

if TYPE_CHECKING:
    import onnx

NUM_PROBES = 32
NUM_BROKEN = 4  # nodes named that break a rule of the target


def export_onnx(
    run: Run,
    path: str | Path,
    *,
    opset: int | None = None,
    int4: bool = False,
    space_to_depth: bool = True,
    force: bool = False,
    probes: Tensor | tuple[Tensor, ...] | None = None,
    into: str | Path = "",
    new_graph: bool = False,
    largest: int = LARGEST,
) -> ExportCheck:
    """Write the student as an ONNX file and check the file by running it.

    Quantize/dequantize pairs around float operators (QDQ): unsigned 8-bit activations, signed 8-bit weights with
    zero_point 0, 32-bit biases, all stored as integers; pruned float students as plain float. Other targets of the
    recipe have other forms; what their runtime may not take is in the notes. The batch dimension is open. Recipe, seed,
    version and input range travel in the file's metadata.

    Args:
        path: of the file; it appears whole or not at all, and with it NAME.onnx.data where it needs one.
        opset: 21 or 13; None = the target's.
        int4: store weights of up to 4 bits as ONNX INT4: half the bytes, but slower in ONNX Runtime. Opset 21 only.
        space_to_depth: write a first convolution of stride 2 on blocks of 2x2 pixels: the same integers, a tenth faster
            in ONNX Runtime. Only where that is the target.
        force: replace a file that is there.
        probes: images to compare on, (N, C, H, W) as the network sees them, one tensor for each input; None = the
            run's own images, or dead leaves in the run's input range.
        into: the ONNX file that the network was read from, where it lies elsewhere now. The student is written into its
            graph: names, open sizes, metadata, opset and all that was not compressed stay. "" = where it was.
        new_graph: write a graph of its own, though the network was read from an ONNX file.
        largest: bytes of a file by itself; the weights of a larger network go into NAME.onnx.data beside it.

    Raises:
        ExportError: packages are missing, a file is there, an operator that ONNX lacks, a disk that is full; or the
            file differs from the student as much as the student from the float network. No file is left then.
    """
    path, target, run = Path(path), run.recipe.runtime, run.with_ends(torch.float32)
    opset = target.opset if opset is None else opset
    _check_arguments(path, opset, int4=int4, force=force)
    if int4 and not target.int4:
        raise ExportError(f"target {run.recipe.target!r} takes no INT4 weights; leave int4 out")
    place = "" if new_graph else str(into or run.summary.source)
    source = _opened(run, path, Path(place), int4=int4) if place else None
    if source is None:
        model = translate(run.student, opset=opset, int4=int4, target=target)
    else:
        model = write_back(run.student, source, int4=int4, target=target)
    fold_paddings(model)
    folded = fold_pixels(model) if space_to_depth and target.tuned else None
    padded = pad_channels(model) if target.tuned else 0
    if padded:
        del model.graph.value_info[:]  # of other widths
    remove_unread(model.graph)
    _add_metadata(model, run)
    inputs, beside = _probes(run, probes), _companion(model, path, largest, force=force)
    notes = tuple(_notes(run, model, folded, padded))
    try:
        with atomic_write(path, companions=beside) as place:
            write_model(model, place, largest=largest)
            check = check_file(run, place, inputs, notes, source)
    except OSError as error:
        raise ExportError(
            f"{path} could not be written: {error.strerror or error}; free some space or choose another place"
        ) from error
    return check


def _companion(model: onnx.ModelProto, path: Path, largest: int, *, force: bool) -> tuple[str, ...]:
    """The file of weights that belongs to `path`: of the model, or of the file that it replaces."""
    beside = data_file(path)
    is_needed = num_bytes(model) > largest
    if is_needed and beside.exists() and not force:
        raise ExportError(
            f"{beside} exists, and weights of more than 2 GB would go there; choose another name, or force=True "
            "(--force) to replace it"
        )
    is_old = path.exists() and beside in files_of(path)
    return (beside.name,) if is_needed or is_old else ()


def check_packages() -> None:
    """Refuse where nothing can be written or run.

    Raises:
        ExportError: names the package.
    """
    for package in ("onnx", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise ExportError(f"{error.name} is not installed; {install('onnx')}") from error


def _check_arguments(path: Path, opset: int, *, int4: bool, force: bool) -> None:
    check_packages()
    if opset not in IR_VERSIONS:
        raise ExportError(f"opset {opset} is not one that is written; allowed are {', '.join(map(str, IR_VERSIONS))}")
    if int4 and opset < 21:
        raise ExportError(f"opset {opset} has no INT4; export with opset=21, or without int4")
    if path.is_dir():
        raise ExportError(f"{path} is a directory; give the name of a file in it")
    if path.exists() and not force:
        raise ExportError(f"{path} exists; choose another name, or force=True (--force) to replace it")


def _opened(run: Run, path: Path, source: Path, *, int4: bool) -> SourceFile:
    """The file the network was read from, which is not the one to write."""
    mine, theirs = ([file for file in files if file.exists()] for files in ((path, data_file(path)), files_of(source)))
    if any(new.samefile(old) for new in mine for old in theirs):
        raise ExportError(f"{path} is the file that the network was read from; choose another name")
    opened = open_source(source, run.teacher, run.summary.fingerprint)
    if int4 and opened.opset < 21:
        raise ExportError(f"{source} is of opset {opened.opset}, which has no INT4; leave it out, or write a new graph")
    return opened


def _add_metadata(model: onnx.ModelProto, run: Run) -> None:
    from onnx import helper

    known = run.input_range
    entries = {
        "datafree_version": metadata.version("datafree"),
        "model": run.summary.model,
        "recipe": run.recipe.dump(),
        "seed": str(run.summary.seed),
        "input_mean": json.dumps(known and known.mean),
        "input_std": json.dumps(known and known.std),
        "input_range": str(run.summary.input_range),
    }
    known = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(model, entries | known)
    if model.producer_name == "datafree":
        model.producer_version = entries["datafree_version"]


def _probes(run: Run, given: Tensor | tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    """At most NUM_PROBES images of the run's own or made anew; all of those that were given."""
    if given is not None:
        return given if isinstance(given, tuple) else (given,)
    if run.images:
        return tuple(x[:NUM_PROBES] for x in run.images)
    signal = Propagated(images=NUM_PROBES)
    return make_signal(run.teacher, run.stats, signal, seed=0, input_range=run.input_range).inputs


def _broken_rules(model: onnx.ModelProto, run: Run) -> list[str]:
    """What the target's runtime may not take; a few nodes, and how many more there are."""
    target = run.recipe.target
    found = violations(model, run.recipe.runtime)
    more = len(found) - NUM_BROKEN
    rest = [f"not as {target} wants it: {more} more nodes"] if more > 0 else []
    return [f"not as {target} wants it: {line}" for line in found[:NUM_BROKEN]] + rest


def _notes(run: Run, model: onnx.ModelProto, folded: str | None, padded: int) -> list[str]:
    """What the file does not say by itself: containers wider than their integers, other shapes, zeros that stay."""
    from onnx import TensorProto

    if run.student is run.teacher:
        return ["the float network, not the student"]
    stored = {t.name: t.data_type for t in model.graph.initializer}
    notes = _broken_rules(model, run)
    if folded:
        notes.append(f"{folded} reads blocks of 2x2 pixels: its stored weight has another shape, and runs faster")
    if padded:
        notes.append(f"stored weights of {padded} layers have channels of zeros, 16 at a time, and run faster")
    narrow = Counter(
        r.bits
        for r in run.layers
        if r.weight_qparams and r.bits < 8 and stored.get(f"{r.name}.weight") == TensorProto.INT8
    )
    notes += [f"{bits}-bit weights of {count} layers ride in int8" for bits, count in sorted(narrow.items())]
    notes += [f"{layer.name} was solved with {layer.remedy}" for layer in run.summary.mended]
    notes += lost_inputs(run.summary.coarse_inputs)
    if TensorProto.INT4 in stored.values():
        count = sum(stored.get(f"{r.name}.weight") == TensorProto.INT4 for r in run.layers)
        notes.append(f"weights of {count} layers are INT4, for size only: ONNX Runtime unpacks them, which is slower")
    grids = [n.args[3:5] for n in run.student.graph.nodes if n.target is QUANTIZE]
    widths = Counter((high - low).bit_length() for low, high in grids)
    notes += [
        f"{bits}-bit activations ride in uint8, {count} tensors" for bits, count in sorted(widths.items()) if bits < 8
    ]
    prune = run.recipe.prune
    if prune is not None and prune.pattern != "channels":
        notes.append(
            f"{100 * run.summary.sparsity:.0f} % of the weights are zero ({prune.pattern}) and stored all the same: no "
            "maintained CPU runtime is faster on them"
        )
    if run.summary.removed or run.summary.slimmed.removed:
        notes.append("removed channels are gone from the file: its layers are smaller, and dense")
    return notes
