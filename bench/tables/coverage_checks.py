"""What the coverage table does with one network: all that a user would, from the module and from a file of it."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from datafree import Recipe, Run, compress, export_onnx, load_model
from datafree import graph as g
from datafree.execution.pools import one_thread
from datafree.export.onnx.exporter import check_onnx
from datafree.graph import CaptureError
from datafree.models import ModelError
from datafree.sharing import Sharing, sharing
from datafree.signals.probes import dead_leaves
from datafree.teacher import equalize_, fold_batchnorm_

SIDES = (64, 96, 128)  # pixels; the least that the network takes, else its own
NUM_IMAGES, NUM_BATCHES, NUM_SHOWN = 8, 2, 3
SAME = 1e-4  # of the output's range, largest difference
ROUNDINGS = 4  # or so many times what float32 itself is off by, in a network that turns rounding into more
FLOOR_DB = 15.0  # a layer below this at 8 bits is to be said
NEAR_ZERO = 1e-4  # scales of residual branches before training
CHEAP = ["signal.kind=propagated", f"signal.images={NUM_IMAGES}", "solve.method=nearest", "solve.sequential=false"]
RECIPES = {"w8a8": [], "w8a8-tensor": ["slim=off"], "prune50": ["slim=off", "prune.score=magnitude"]}


class Mismatch(Exception):
    """Something ran, and gave what it must not."""


class Refused(Exception):
    """The package said by name what it does not take, before anything was done."""


@dataclass(frozen=True)
class Case:
    """A network, images (N, C, H, W) for it, and all tensors that it answers with."""

    model: nn.Module
    x: Tensor
    answer: list[Tensor]

    @cached_property
    def rounding(self) -> float:
        """How far the network in float32 is from itself in float64."""
        exact = _leaves(copy.deepcopy(self.model).double()(self.x.double()))
        return max(_far(one.double(), wanted) for one, wanted in zip(self.answer, exact, strict=True))


@dataclass
class Found:
    """What became of one network, as far as it came; differences are shares of the output's range."""

    side: int = 0
    num_layers: int = 0
    num_batchnorms: int = 0
    captured: float | None = None
    folded: float | None = None
    equalized: float | None = None
    student_db: dict[str, float] = field(default_factory=dict)
    file_db: float | None = None
    read: float | None = None
    written_by: str = ""


def examine(name: str, found: Found, at: Callable[[str], None]) -> None:
    """Do everything with a network, filling `found` on the way; `at` is told what comes next.

    Raises:
        Refused: says what is not taken.
        Exception: anything else is a fault.
    """
    with one_thread(), torch.no_grad(), warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
        warnings.simplefilter("ignore")
        at("build")
        case, shared = _built(name), sharing()
        found.side = case.x.shape[-1]
        _examine_graph(case, shared, found, at)
        run = _examine_preset(case, "w8a8", shared, found, at)
        at("export")
        with _refusals(ValueError):
            check_onnx(run.teacher, run.recipe, "")
        found.file_db = export_onnx(run, Path(scratch) / "student.onnx", probes=case.x).sqnr_db
        for preset in [*RECIPES][1:]:
            _examine_preset(case, preset, shared, found, at)
        _examine_file(case, replace(run, student=run.teacher), Path(scratch), found, at)


def _examine_graph(case: Case, shared: Sharing, found: Found, at: Callable[[str], None]) -> None:
    """Captured, folded, and equalized with every vector there is: the same function each time."""
    at("capture")
    with _refusals(CaptureError):
        graph = shared.trace(case.model, case.x)
    found.num_layers, found.num_batchnorms = len(g.layers(graph)), len(g.batch_norms(graph))
    found.captured = _same(graph, case)
    at("fold")
    stats, _ = fold_batchnorm_(graph)
    found.folded = _same(graph, case)
    at("equalize")
    equalize_(graph, stats, mode="free")
    found.equalized = _same(graph, case)


def _examine_preset(case: Case, preset: str, shared: Sharing, found: Found, at: Callable[[str], None]) -> Run:
    at(preset)
    run = _compressed(case, preset, RECIPES[preset], shared)
    found.student_db[preset] = _sqnr(run.student, case)
    return run


def _compressed(case: Case, preset: str, settings: list[str], shared: Sharing) -> Run:
    """A run whose teacher is the model, whose student runs, and that says which layers are poor."""
    recipe = Recipe.preset(preset).updated([*CHEAP, *settings])
    run = compress(case.model, recipe, case.x[:1], shared=shared, progress=False)
    _same(run.teacher, case)
    answer = _leaves(run.student(case.x))
    if [t.shape for t in answer] != [t.shape for t in case.answer]:
        raise Mismatch(f"the student's outputs are {[tuple(t.shape) for t in answer]}")
    if not all(bool(torch.isfinite(t).all()) for t in answer):
        raise Mismatch("the student's outputs are not finite")
    if unsaid := list(_unsaid(run)):
        raise Mismatch(f"nothing is said of {', '.join(unsaid[:3])}, under {FLOOR_DB:g} dB at 8 bits")
    return run


def _examine_file(case: Case, float_run: Run, scratch: Path, found: Found, at: Callable[[str], None]) -> None:
    """The same network by way of a float ONNX file: read, captured and compressed."""
    path, shared = scratch / "float.onnx", sharing()
    at("file, exported")
    found.written_by = "PyTorch" if _exported(case, path) else "datafree"
    if found.written_by == "datafree":
        export_onnx(float_run, path, probes=case.x, force=True)
    at("file, read")
    with _refusals(ModelError):
        read, example = load_model(str(path), input_shape=(1, *case.x.shape[1:]))
    assert isinstance(example, Tensor), "it has one input"
    found.read = _same(read, case)
    at("file, captured")
    _same(shared.trace(read, example), case)
    at("file, w8a8")
    _compressed(replace(case, model=read), "w8a8", ["slim=off"], shared)


def _exported(case: Case, path: Path) -> bool:
    """Whether PyTorch's exporter writes the network, BatchNorm kept; where it fails the file is written here."""
    options = {"input_names": ["images"], "dynamic_axes": {"images": {0: "batch"}}, "opset_version": 17}
    kept = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    with suppress(Exception):  # of its own, many kinds
        torch.onnx.export(case.model, (case.x,), path, dynamo=False, verbose=False, **options, **kept)
    return path.exists()


@contextmanager
def _refusals(kind: type[Exception]) -> Iterator[None]:
    """Errors of the package that name what is not taken."""
    try:
        yield
    except kind as error:
        raise Refused(" ".join(str(error).split())) from error


# ---- networks


def _built(name: str) -> Case:
    """A network with random weights and plausible statistics, and images of the least size it takes."""
    torch.manual_seed(0)
    model, example = load_model(name)
    assert isinstance(example, Tensor), "networks by name have one input"
    sides = [side for side in SIDES if side < example.shape[-1]] + [example.shape[-1]]
    for side in sides:
        batches = [smooth_images(example.shape[1], side, seed) for seed in range(NUM_BATCHES)]
        try:
            model(batches[0])
            set_statistics_(model, batches)
            x = batches[-1][:NUM_SHOWN]
            return Case(model, x, _leaves(model(x)))
        except (RuntimeError, AssertionError, ValueError, IndexError):
            if side == sides[-1]:
                raise
    raise AssertionError("one of the sides is the network's own")


def smooth_images(channels: int, side: int, seed: int) -> Tensor:
    """Dead leaves (N, C, side, side) of mean 0 and deviation 1."""
    rng = torch.Generator().manual_seed(seed)
    return dead_leaves(NUM_IMAGES, height=side, width=side, channels=channels, generator=rng)


def set_statistics_(model: nn.Module, batches: list[Tensor]) -> None:
    """Let nothing be as before training: gammas and betas differ, BatchNorm has seen images, no branch adds zero."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for path, parameter in model.named_parameters():
        is_bias = path.rpartition(".")[2].endswith(("bias", "biases"))
        if not is_bias and bool((parameter.abs() <= NEAR_ZERO).all()):
            parameter.uniform_(0.01, 0.1) if parameter.dim() > 1 else parameter.uniform_(0.2, 0.5)
    for norm in norms:
        if norm.weight is not None:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.1, 0.1)
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    for x in batches if norms else []:
        model(x)
    model.eval()


# ---- comparing


def _same(found: nn.Module | fx.GraphModule, case: Case) -> float:
    """The largest difference from the network's outputs, as a share of their range.

    Raises:
        Mismatch: it is more than rounding explains.
    """
    answer = _leaves(found(case.x))
    if [t.shape for t in answer] != [t.shape for t in case.answer]:
        raise Mismatch(f"outputs are {[tuple(t.shape) for t in answer]}, not {[tuple(t.shape) for t in case.answer]}")
    off = max(_far(one, wanted) for one, wanted in zip(answer, case.answer, strict=True))
    if not (off <= SAME or off <= ROUNDINGS * case.rounding):
        raise Mismatch(f"the output is off by {off:.1e} of its range")
    return off


def _far(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / (wanted.max() - wanted.min()).clamp(min=1e-9))


def _leaves(answer: Any) -> list[Tensor]:
    """All tensors of an answer, whatever they come in."""
    if isinstance(answer, Mapping):
        answer = dict(answer)
    return [leaf for leaf in pytree.tree_leaves(answer) if isinstance(leaf, Tensor)]


def _sqnr(student: nn.Module, case: Case) -> float:
    """Of the worst output, decibel."""
    pairs = zip(_leaves(student(case.x)), case.answer, strict=True)
    ratios = [wanted.var() / (one - wanted).square().mean().clamp(min=1e-30) for one, wanted in pairs]
    return min(float(10 * torch.log10(ratio.clamp(min=1e-30))) for ratio in ratios)


def _unsaid(run: Run) -> Iterator[str]:
    """Layers that are poor at 8 bits, of which neither the summary nor a warning says so."""
    summary = run.summary
    said = {entry.name for entry in (*summary.mended, *summary.coarse_inputs, *summary.skipped)}
    for layer in run.layers:
        is_poor = layer.bits == 8 and min(layer.error_db, layer.channel_db, layer.input_db) < FLOOR_DB
        if is_poor and layer.name not in said and not any(layer.name in line for line in summary.warnings):
            yield layer.name
