"""Running a written ONNX file in ONNX Runtime, and reading what ONNX Runtime made of it."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from datafree.export.onnx.writer import ExportError
from datafree.records import decibel

if TYPE_CHECKING:
    import onnx
    import onnxruntime

FLOAT, UINT8 = 1, 2  # onnx.TensorProto
BATCH = 8  # images at a time: bounds memory
CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")


def session(path: Path, *, optimized: Path | None = None, threads: int = 1) -> onnxruntime.InferenceSession:
    """Open a file as ONNX Runtime runs it on a CPU, all optimizations on.

    Args:
        optimized: where to write the graph that is left after optimization.
        threads: of one operator; operators run one after the other.

    Raises:
        ExportError: ONNX Runtime does not take the file; in its own words, on one line.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # x86 without VNNI adds products of bytes in pairs, in 16 bits, and saturates: 66 where 130 is right
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3  # it warns that an optimized file is for this machine alone
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    if optimized:
        options.optimized_model_filepath = str(optimized)
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
    """Outputs of the whole set, computed a batch at a time."""
    names = [item.name for item in opened.get_inputs()]
    parts = [
        opened.run(None, {name: x.numpy() for name, x in zip(names, batch, strict=True)})
        for batch in zip(*(x.split(BATCH) for x in inputs), strict=True)
    ]
    return [torch.cat([torch.from_numpy(values) for values in column]) for column in zip(*parts, strict=True)]


def run_module(module: Callable[..., Any], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The same of a module or function, its outputs flattened."""
    with torch.no_grad():
        answers = [module(*batch) for batch in zip(*(x.split(BATCH) for x in inputs), strict=True)]
    parts = [[v for v in pytree.tree_leaves(answer) if v is not None] for answer in answers]
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def repeatability(module: torch.nn.Module, inputs: tuple[Tensor, ...], wanted: list[Float[Tensor, ...]]) -> float:
    """How near a module comes to itself with other float kernels, decibel: no file can be much nearer.

    Every quantizer turns the last bit of a sum near the middle of two integers into a whole step, and layers after it
    turn one step into several (ours: on MobileNets the number of differing integers doubles from layer to layer).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # setting the flags warns on some builds
        with torch.backends.mkldnn.flags(enabled=False):
            return sqnr(run_module(module, inputs), wanted)


def sqnr(found: list[Float[Tensor, ...]], wanted: list[Float[Tensor, ...]]) -> float:
    """Power of what is wanted to power of the difference, decibel; of the worst output."""
    return min(
        decibel(float(w.double().square().mean()), float((f.double() - w).square().mean()))
        for f, w in zip(found, wanted, strict=True)
    )


def agreement(found: list[Float[Tensor, ...]], wanted: list[Float[Tensor, ...]]) -> float | None:
    """Share of equal classes in the first output of logits (N, classes), percent; None where there is none."""
    pairs = [(f, w) for f, w in zip(found, wanted, strict=True) if w.dim() == 2 and w.shape[1] > 1]
    if not pairs:
        return None
    return 100 * float((pairs[0][0].argmax(1) == pairs[0][1].argmax(1)).double().mean())


def open_and_read(path: Path, *, threads: int) -> tuple[onnxruntime.InferenceSession, tuple[str, ...]]:
    """A session of a file, and the nodes it still computes in float."""
    import onnx

    with tempfile.TemporaryDirectory() as scratch:
        optimized = Path(scratch) / "optimized.onnx"
        opened = session(path, optimized=optimized, threads=threads)
        return opened, float_nodes(onnx.load(optimized))


def float_nodes(model: onnx.ModelProto) -> tuple[str, ...]:
    """`operator name` of every node that computes on float values; conversions to and from integers are not listed.

    Types are followed from inputs and stored tensors through the graph: integer kernels give bytes, other operators
    what their first input is.
    """
    types = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
    types |= {t.name: t.data_type for t in model.graph.initializer}
    found = []
    for node in model.graph.node:
        kind = _type_of(node, types)
        types |= dict.fromkeys(node.output, kind)
        reads_float = any(types.get(name) == FLOAT for name in node.input[:1])
        if kind == FLOAT and reads_float and node.op_type not in CONVERSIONS:
            found.append(f"{node.op_type} {node.name}".strip())
    return tuple(found)


def _type_of(node: onnx.NodeProto, types: dict[str, int]) -> int:
    """Element type of what a node gives."""
    if node.op_type == "DequantizeLinear" or (node.op_type == "QGemm" and len(node.input) < 9):  # no output grid
        return FLOAT
    if node.op_type in ("QuantizeLinear", "QGemm") or node.op_type.startswith("QLinear"):
        return UINT8
    return types.get(node.input[0], FLOAT) if node.input else FLOAT
