"""A run as an ONNX file that integer runtimes fuse: written, checked, run, and compared with the student."""

from __future__ import annotations

import importlib
import json
import math
from collections import Counter
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from datafree import graph as g
from datafree.execution import atomic_write
from datafree.export.onnx.conv_pads import fold_paddings
from datafree.export.onnx.fusion import DEQUANTIZE, QUANTIZE
from datafree.export.onnx.onnxruntime import agreement, repeatability, run_and_read, run_file, run_module, session, sqnr
from datafree.export.onnx.optimized import NodeShare
from datafree.export.onnx.pad_channels import pad_channels
from datafree.export.onnx.source_file import open_source
from datafree.export.onnx.space_to_depth import fold_pixels
from datafree.export.onnx.target_rules import violations
from datafree.export.onnx.translate import translate
from datafree.export.onnx.write_back import write_back
from datafree.export.onnx.writer import IR_VERSIONS, ExportError, remove_unread
from datafree.recipe import Propagated
from datafree.run import Run, lost_inputs
from datafree.signals import make_signal

if TYPE_CHECKING:
    import onnx
    from onnxruntime import InferenceSession

__all__ = ["ExportCheck", "ExportError", "export_onnx"]

NUM_PROBES = 32
NEAR_DB, SLACK_DB = 10.0, 6.0  # above the quantization noise: near enough; below the student's own repeatability: not
NUM_BROKEN = 4  # nodes named that break a rule of the target
LARGER = 32  # pixels more a side, where sizes are open
SAME_DB = 80.0  # float rounding alone; a file this near to the student is the student, however little that lost


@dataclass(frozen=True)
class ExportCheck:
    """What the written file does, from running it in ONNX Runtime on `num_probes` images.

    sqnr_db: file against student; quantization_db: student against the float network. Both of the worst output.
    agreement: images that get the student's class, percent; None where the network gives no logits (N, classes).
    largest_difference: of any output value, file against student.
    bytes, float_bytes: of the file, and of the float network's weights and biases.
    nodes: of ONNX Runtime's optimized graph, those that are no integer kernels, with their share of the time.
    """

    sqnr_db: float
    agreement: float | None
    largest_difference: float
    quantization_db: float
    bytes: int
    float_bytes: int
    nodes: tuple[NodeShare, ...]
    notes: tuple[str, ...]
    num_probes: int

    @property
    def float_nodes(self) -> tuple[str, ...]:
        """Those that still compute in float, as `operator name`."""
        return tuple(str(node) for node in self.nodes if node.kind == "float")

    def __str__(self) -> str:
        same = "" if self.agreement is None else f", {self.agreement:.1f} % equal classes"
        return (
            f"{self.bytes / 1e6:.2f} MB, {self.bytes / max(1, self.float_bytes):.3f} of the float network; "
            f"file against student {self.sqnr_db:.1f} dB{same} on {self.num_probes} probe images "
            f"(student against float {self.quantization_db:.1f} dB); "
            f"{len(self.float_nodes)} nodes in float in ONNX Runtime"
        )


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
) -> ExportCheck:
    """Write the student as an ONNX file and check the file by running it.

    Quantize/dequantize pairs around float operators (QDQ): unsigned 8-bit activations, signed 8-bit weights with
    zero_point 0, 32-bit biases, all stored as integers; pruned float students as plain float. Other targets of the
    recipe have other forms; what their runtime may not take is in the notes. The batch dimension is open. Recipe, seed,
    version and input range travel in the file's metadata.

    Args:
        path: of the file; it appears whole or not at all.
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

    Raises:
        ExportError: packages are missing, a file is there, an operator that ONNX lacks, a disk that is full; or the
            file differs from the student as much as the student from the float network. No file is left then.
    """
    path, target = Path(path), run.recipe.runtime
    opset = target.opset if opset is None else opset
    _check_arguments(path, opset, int4=int4, force=force)
    if int4 and not target.int4:
        raise ExportError(f"target {run.recipe.target!r} takes no INT4 weights; leave int4 out")
    source = "" if new_graph else str(into or run.summary.source)
    model = _written(run, path, opset=opset, int4=int4, source=source)
    fold_paddings(model)
    folded = fold_pixels(model) if space_to_depth and target.tuned else None
    padded = pad_channels(model) if target.tuned else 0
    remove_unread(model.graph)
    _add_metadata(model, run)
    inputs = _probes(run, probes)
    try:
        with atomic_write(path) as place:
            place.write_bytes(model.SerializeToString())
            check = _check(run, place, inputs, tuple(_notes(run, model, folded, padded)), source)
    except OSError as error:
        raise ExportError(
            f"{path} could not be written: {error.strerror or error}; free some space or choose another place"
        ) from error
    return check


def _check_arguments(path: Path, opset: int, *, int4: bool, force: bool) -> None:
    for package in ("onnx", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise ExportError(f'{error.name} is not installed; pip install "datafree[onnx]"') from error
    if opset not in IR_VERSIONS:
        raise ExportError(f"opset {opset} is not one that is written; allowed are {', '.join(map(str, IR_VERSIONS))}")
    if int4 and opset < 21:
        raise ExportError(f"opset {opset} has no INT4; export with opset=21, or without int4")
    if path.is_dir():
        raise ExportError(f"{path} is a directory; give the name of a file in it")
    if path.exists() and not force:
        raise ExportError(f"{path} exists; choose another name, or force=True (--force) to replace it")


def _written(run: Run, path: Path, *, opset: int, int4: bool, source: str) -> onnx.ModelProto:
    """A graph of its own, or that of the file the network was read from."""
    if not source:
        return translate(run.student, opset=opset, int4=int4, target=run.recipe.runtime)
    if path.exists() and path.samefile(source):
        raise ExportError(f"{path} is the file that the network was read from; choose another name")
    opened = open_source(Path(source), run.teacher, run.summary.fingerprint)
    if int4 and opened.opset < 21:
        raise ExportError(f"{source} is of opset {opened.opset}, which has no INT4; leave it out, or write a new graph")
    return write_back(run.student, opened, int4=int4, target=run.recipe.runtime)


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


def _check(run: Run, path: Path, inputs: tuple[Tensor, ...], notes: tuple[str, ...], source: str) -> ExportCheck:
    """Run the file and compare.

    Raises:
        ExportError: the file is not valid, or not the student.
    """
    fault = _fault(path)
    if fault and not (source and _fault(Path(source))):
        raise ExportError(f"the file is no valid ONNX and was not written: {fault}; try the other opset")
    found, nodes = run_and_read(path, inputs, threads=torch.get_num_threads())
    wanted = run_module(run.student, inputs)
    check = ExportCheck(
        sqnr_db=sqnr(found, wanted),
        agreement=agreement(found, wanted),
        largest_difference=max(float((f - w).abs().max()) for f, w in zip(found, wanted, strict=True)),
        quantization_db=sqnr(wanted, run_module(run.teacher, inputs)),
        bytes=path.stat().st_size,
        float_bytes=run.summary.float_bytes,
        nodes=nodes,
        notes=notes,
        num_probes=len(inputs[0]),
    )
    check = _judged(check, run, inputs, wanted)
    _check_other_sizes(run, path, inputs, source, check.quantization_db)
    return check


def _fault(path: Path) -> str:
    """What ONNX's own checker finds wrong; "" = nothing."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return " ".join(str(error).split())[:300]
    return ""


def _check_other_sizes(run: Run, path: Path, inputs: tuple[Tensor, ...], source: str, quantization_db: float) -> None:
    """Run the file on a single image, and on larger ones where its height and width are open.

    A student has its size written in where the file has not, so that larger images are compared with the float file.

    Raises:
        ExportError: it gives something else there.
    """
    opened, one = session(path), tuple(x[:1] for x in inputs)
    _check_near(opened, one, run_module(run.student, one), min(quantization_db, SAME_DB), step=_output_step(run))
    sides = [item.shape for item in opened.get_inputs()]
    if source and all(len(side) == 4 and not any(isinstance(s, int) for s in side[2:]) for side in sides):
        larger = tuple(F.interpolate(x[:2], size=[s + LARGER for s in x.shape[2:]], mode="bilinear") for x in inputs)
        try:
            wanted = run_file(session(Path(source)), larger)
        except Exception:  # the float file takes one size only; ONNX Runtime's exceptions share no class below this one
            return
        _check_near(opened, larger, wanted, quantization_db / 2 - NEAR_DB)  # other sizes have other values


def _output_step(run: Run) -> float:
    """The least step of the grids that outputs are rounded to, where all are: a file may be off by one of them."""
    nodes = g.outputs(run.student)
    return 1.01 * min((g.argument(n, "scale") if n.target is DEQUANTIZE else 0.0 for n in nodes), default=0.0)


def _check_near(
    opened: InferenceSession, inputs: tuple[Tensor, ...], wanted: list[Tensor], limit: float, *, step: float = 0.0
) -> None:
    found = run_file(opened, inputs)
    alike = [f.shape for f in found] == [w.shape for w in wanted]
    near = sqnr(found, wanted) if alike else -math.inf
    if not (
        near > limit or (alike and all(bool(((f - w).abs() <= step).all()) for f, w in zip(found, wanted, strict=True)))
    ):
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise ExportError(
            f"at {shapes} the file is {near:.1f} dB near what it should give, not the {limit:.1f} dB of its rounding; "
            "nothing was written. Try a graph of its own"
        )


def _judged(check: ExportCheck, run: Run, inputs: tuple[Tensor, ...], wanted: list[Tensor]) -> ExportCheck:
    """The check, with a note where the student itself depends on the last bit of its sums.

    Raises:
        ExportError: the file is as far from the student as the student from the float network, and more so than float
            kernels explain.
    """
    if check.sqnr_db > min(check.quantization_db + NEAR_DB, SAME_DB):
        return check
    own = repeatability(run.student, inputs, wanted)
    limit = min(check.quantization_db, SAME_DB, own - SLACK_DB)
    if not (check.sqnr_db > limit or check.largest_difference <= _output_step(run)):
        raise ExportError(
            f"the file is only {check.sqnr_db:.1f} dB near the student, which is {check.quantization_db:.1f} dB near "
            "the float network; nothing was written. Try opset=21, without int4, and a newer onnxruntime"
        )
    note = f"rounding in float sums alone moves the student by as much as {own:.1f} dB: no file is much nearer"
    return replace(check, notes=(*check.notes, note))


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
