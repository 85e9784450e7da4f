"""Running a written ONNX file in ONNX Runtime, and how near it comes to the student."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from datafree.export.onnx.optimized import NodeShare, read_nodes
from datafree.export.onnx.writer import IR_VERSIONS, ExportError
from datafree.records import decibel

if TYPE_CHECKING:
    import onnx
    import onnxruntime

BATCH = 8  # images at a time: bounds memory
OPTIMIZED = "optimized.onnx"
TIMED = 10  # runs of one image, to time nodes; the fastest counts
RIGHT = 100


@cache
def saturates() -> bool:
    """Whether integer kernels here are wrong unless ONNX Runtime is asked for precision, which halves their speed.

    x86 without VNNI adds products of bytes in pairs, in 16 bits.
    """
    import onnxruntime

    model, x = largest_sums()
    options = _options(threads=1, precise=False)
    opened = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return bool((np.asarray(opened.run(None, {"x": x})[0]) != RIGHT).any())


def largest_sums() -> tuple[onnx.ModelProto, np.ndarray]:
    """A convolution of the largest bytes there are, and its input; each of its outputs is RIGHT."""
    from onnx import TensorProto, helper, numpy_helper

    x, w = np.full((1, 4, 1, 1), 255, np.uint8), np.full((16, 4, 1, 1), 127, np.int8)
    step = np.float32(255 * 127 * 4 / RIGHT)
    stored = {"one": np.float32(1), "z": np.uint8(0), "w": w, "wz": np.int8(0), "step": step}
    conv = helper.make_node("QLinearConv", ["x", "one", "z", "w", "one", "wz", "step", "z"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.UINT8, None) for name in ("x", "y")]
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
    graph = helper.make_graph([conv], "largest", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=IR_VERSIONS[13]), x


def _options(*, threads: int, precise: bool) -> onnxruntime.SessionOptions:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", str(int(precise)))
    options.log_severity_level = 3  # it warns that an optimized file is for this machine alone
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return options


def session(path: Path, *, scratch: Path | None = None, threads: int = 1) -> onnxruntime.InferenceSession:
    """Open a file as ONNX Runtime runs it on a CPU, all optimizations on.

    Args:
        scratch: a folder that takes the graph that is left after optimization, and how long its nodes take.
        threads: of one operator; operators run one after the other.

    Raises:
        ExportError: ONNX Runtime does not take the file; in its own words, on one line.
    """
    import onnxruntime

    options = _options(threads=threads, precise=saturates())
    if scratch:
        options.optimized_model_filepath = str(scratch / OPTIMIZED)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.data")
        options.enable_profiling, options.profile_file_prefix = True, str(scratch / "profile")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no class below this one
        raise ExportError(
            f"{path.name} does not run in ONNX Runtime: {_one_line(error)}; it was cut short, altered, or not made for "
            "a CPU"
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def run_file(opened: onnxruntime.InferenceSession, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Outputs of the whole set, computed a batch at a time: of the file's own size, where it has one."""
    names = [item.name for item in opened.get_inputs()]
    size = opened.get_inputs()[0].shape[0]
    size = size if isinstance(size, int) else None
    parts = []
    for batch in zip(*(x.split(size or BATCH) for x in inputs), strict=True):
        feed = {name: _filled(x, size).numpy() for name, x in zip(names, batch, strict=True)}
        is_short = size is not None and len(batch[0]) < size
        answers = [np.asarray(answer) for answer in opened.run(None, feed)]
        parts.append([answer[: len(batch[0])] if is_short else answer for answer in answers])
    return [torch.cat([torch.from_numpy(values) for values in column]) for column in zip(*parts, strict=True)]


def run_onnx(path: Path, *inputs: Tensor) -> list[Tensor]:
    """Outputs of an ONNX file for a set of images (N, ...), computed in ONNX Runtime.

    Raises:
        ExportError: ONNX Runtime does not take the file.
    """
    return run_file(session(path), inputs)


def _filled(x: Tensor, size: int | None) -> Tensor:
    """A batch as large as the file wants it; the last image is repeated."""
    return x if size is None else torch.cat([x, x[-1:].expand(size - len(x), *x.shape[1:])])


def run_module(module: Callable[..., Any], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The same of a module or function, its outputs flattened."""
    with torch.no_grad():
        answers = [module(*batch) for batch in zip(*(x.split(BATCH) for x in inputs), strict=True)]
    parts = [[v for v in pytree.tree_leaves(answer) if v is not None] for answer in answers]
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def repeatability(module: torch.nn.Module, inputs: tuple[Tensor, ...], wanted: list[Float[Tensor, "..."]]) -> float:
    """How near a module comes to itself with other float kernels, decibel: no file can be much nearer.

    Every quantizer turns the last bit of a sum near the middle of two integers into a whole step, and layers after it
    turn one step into several (ours: on MobileNets the number of differing integers doubles from layer to layer).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # setting the flags warns on some builds
        with torch.backends.mkldnn.flags(enabled=False):
            return sqnr(run_module(module, inputs), wanted)


def sqnr(found: list[Float[Tensor, "..."]], wanted: list[Float[Tensor, "..."]]) -> float:
    """Power of what is wanted to power of the difference, decibel; of the worst output."""
    return min(
        decibel(float(w.double().square().mean()), float((f.double() - w).square().mean()))
        for f, w in zip(found, wanted, strict=True)
    )


def agreement(found: list[Float[Tensor, "..."]], wanted: list[Float[Tensor, "..."]]) -> float | None:
    """Share of equal classes in the first output of logits (N, classes), percent; None where there is none."""
    pairs = [(f, w) for f, w in zip(found, wanted, strict=True) if w.dim() == 2 and w.shape[1] > 1]
    if not pairs:
        return None
    return 100 * float((pairs[0][0].argmax(1) == pairs[0][1].argmax(1)).double().mean())


def run_and_read(path: Path, inputs: tuple[Tensor, ...], *, threads: int) -> tuple[list[Tensor], tuple[NodeShare, ...]]:
    """Outputs of a file, and what ONNX Runtime made of it that is no integer kernel, with its share of the time."""
    with tempfile.TemporaryDirectory() as scratch:
        opened = session(path, scratch=Path(scratch), threads=threads)
        for _ in range(TIMED):
            run_file(opened, tuple(x[:1] for x in inputs))
        found = run_file(opened, inputs)
        return found, read_nodes(Path(scratch) / OPTIMIZED, Path(opened.end_profiling()))
