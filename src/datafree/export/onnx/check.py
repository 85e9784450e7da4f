"""An ONNX file that was just written, run in ONNX Runtime and compared with the student."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from datafree import graph as g
from datafree.export.onnx.fusion import DEQUANTIZE
from datafree.export.onnx.onnxruntime import agreement, repeatability, run_and_read, run_file, run_module, session, sqnr
from datafree.export.onnx.optimized import NodeShare
from datafree.export.onnx.source_file import SourceFile
from datafree.export.onnx.writer import ExportError
from datafree.models import num_file_bytes
from datafree.run import Run

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

NEAR_DB, SLACK_DB = 10.0, 6.0  # above the quantization noise: near enough; below the student's own repeatability: not
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


def check_file(
    run: Run, path: Path, inputs: tuple[Tensor, ...], notes: tuple[str, ...], source: SourceFile | None
) -> ExportCheck:
    """Run a file and compare it.

    Args:
        path: of the file, in a folder that is gone soon.
        inputs: of the student.
        source: the file that it takes the place of; None = it has a graph of its own.

    Raises:
        ExportError: the file is not valid, or not the student.
    """
    fault = _fault(path)
    if fault and not (source and _fault(source.path)):
        raise ExportError(f"the file is no valid ONNX and was not written: {fault}; try the other opset")
    run_here, fed = (path, inputs) if source is None else _network_of(path, source, inputs)
    found, nodes = run_and_read(run_here, fed, threads=torch.get_num_threads())
    wanted = run_module(run.student, inputs)
    if [f.shape for f in found] != [w.shape for w in wanted]:
        shapes = " and ".join(str(tuple(f.shape)) for f in found)
        raise ExportError(
            f"the file's outputs are {shapes} for {len(inputs[0])} images, and not one an image as the student's; "
            "nothing was written. Try a graph of its own, or a network whose outputs have the batch in front"
        )
    check = ExportCheck(
        sqnr_db=sqnr(found, wanted),
        agreement=agreement(found, wanted),
        largest_difference=largest_difference(found, wanted),
        quantization_db=sqnr(wanted, run_module(run.teacher, inputs)),
        bytes=num_file_bytes(path),
        float_bytes=run.summary.float_bytes,
        nodes=nodes,
        notes=notes,
        num_probes=len(inputs[0]),
    )
    check = _judged(check, run, inputs, wanted)
    limit = min(check.quantization_db, SAME_DB) / 2 - NEAR_DB  # other sizes have other values
    opened, single = session(run_here), run_module(run.student, tuple(x[:1] for x in inputs))
    _check_near(opened, tuple(x[:1] for x in fed), single, limit, step=_output_step(run))
    if source is not None:
        _check_larger(session(path), source, inputs, limit)
    return check


def _network_of(path: Path, source: SourceFile, inputs: tuple[Tensor, ...]) -> tuple[Path, tuple[Tensor, ...]]:
    """The part of a file that is the student's, where more follows; and the inputs as the file takes them.

    It is written beside the file, where the weights are, if these have a file of their own.
    """
    import onnx

    fed = source.network.as_in_file(*inputs)
    if not source.network.tail:
        return path, fed
    model, part = onnx.load(path, load_external_data=False), path.with_name(f"network-of-{path.name}")
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in source.network.outputs)
    part.write_bytes(model.SerializeToString())
    return part, fed


def largest_difference(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Of any value."""
    return max(float((f - w).abs().max()) for f, w in zip(found, wanted, strict=True))


def _fault(path: Path) -> str:
    """What ONNX's own checker finds wrong; "" = nothing."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return " ".join(str(error).split())[:300]
    return ""


def _check_larger(opened: InferenceSession, source: SourceFile, inputs: tuple[Tensor, ...], limit: float) -> None:
    """Run the file on larger images where its height and width are open, beside the float file.

    The student is no measure there: the size it was captured at is written into it.

    Raises:
        ExportError: it gives something else.
    """
    sides = [item.shape for item in opened.get_inputs()]
    fixed = [side for shape in sides for side in shape[1:] if isinstance(side, int)]
    if any(len(shape) != 4 for shape in sides) or len(fixed) != len(sides):  # the channels
        return
    larger = [F.interpolate(x[:2], size=[side + LARGER for side in x.shape[2:]], mode="bilinear") for x in inputs]
    fed = source.network.as_in_file(*larger)
    try:
        wanted = run_file(session(source.path), fed)
    except Exception:  # the float file takes one size only; ONNX Runtime's exceptions share no class below this one
        return
    _check_near(opened, fed, wanted, limit)


def _output_step(run: Run) -> float:
    """The least step of the grids that outputs are rounded to, where all are: a file may be off by one of them."""
    nodes = g.outputs(run.student)
    return 1.01 * min((g.argument(n, "scale") if n.target is DEQUANTIZE else 0.0 for n in nodes), default=0.0)


def _check_near(
    opened: InferenceSession, inputs: tuple[Tensor, ...], wanted: list[Tensor], limit: float, *, step: float = 0.0
) -> None:
    """Compare a file with what it should give.

    Raises:
        ExportError: they are farther apart than the limit, or it does not run.
    """
    shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
    try:
        found = run_file(opened, inputs)
    except Exception as error:  # ONNX Runtime's exceptions share no class below this one
        raise ExportError(
            f"at {shapes} the file does not run: {' '.join(str(error).split())[:200]}; nothing was written. Try a "
            "graph of its own"
        ) from None
    alike = [f.shape for f in found] == [w.shape for w in wanted]
    near = sqnr(found, wanted) if alike else -math.inf
    is_near = near > limit or (alike and largest_difference(found, wanted) <= step)
    if not is_near:
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
