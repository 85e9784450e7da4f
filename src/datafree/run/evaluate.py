"""What was lost, measured on images, with labels or without."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, fx, nn

from datafree import graph as g
from datafree.records import decibel

BATCH_SIZE = 100
ENOUGH = 20  # labels to tell by
OFF_BY_ONE = 3.0  # standard errors by which labels moved by one fit better, at least twice as well too

Batch = tuple[Tensor, Tensor | None]


class EvaluationError(ValueError):
    """Images or labels that do not fit the network, or none."""


@dataclass(frozen=True)
class Evaluation:
    """Percent, over `num_images`; standard errors are binomial, that of the loss is of paired differences.

    Without labels nothing but the agreement is known; the others are None.
    """

    top1: float | None
    float_top1: float | None
    agreement: float
    num_images: int
    top1_error: float | None
    lost: float | None  # float_top1 - top1, points
    lost_error: float | None
    layer_sqnr_db: dict[str, float]  # of each layer's output against the teacher's, whole network running


def evaluate_models(
    student: nn.Module,
    teacher: nn.Module,
    data: Any,
    *,
    layers: bool = True,
) -> Evaluation:
    """Compare student and teacher on images.

    Args:
        student: maps (N, C, H, W) to logits (N, classes).
        teacher: as student.
        data: batches (x, y), y class indices (N,); or batches x, or one tensor x, without labels.
        layers: whether to compare every layer's output, on the first batch.

    Raises:
        EvaluationError: no images; logits that are not (N, classes); images or labels that do not fit.
    """
    ours, theirs, labels = [], [], []
    sqnr: dict[str, float] = {}
    with torch.no_grad():
        for x, y in batches(data):
            _check_x(x, teacher)
            if layers and not sqnr and isinstance(student, fx.GraphModule) and isinstance(teacher, fx.GraphModule):
                sqnr = layer_sqnr(student, teacher, x.float())
            found, wanted = student(x), teacher(x)
            if not isinstance(found, Tensor) or found.dim() != 2:
                raise EvaluationError("top-1 needs a network that returns one tensor of logits (N, classes)")
            if y is not None:
                _check_y(y, x, found.shape[1])
            ours.append(found.argmax(1))
            theirs.append(wanted.argmax(1))
            labels.append(y)
    if not ours:
        raise EvaluationError("there are no images to evaluate on; give batches of (x, y), or of x")
    if len({y is None for y in labels}) > 1:
        raise EvaluationError("some batches have labels and others have none; give labels with all or with none")
    y = None if labels[0] is None else torch.cat([y for y in labels if y is not None])
    return _compared(torch.cat(ours), torch.cat(theirs), y, sqnr)


def _compared(
    ours: Int[Tensor, " n"], theirs: Int[Tensor, " n"], y: Int[Tensor, " n"] | None, sqnr: dict[str, float]
) -> Evaluation:
    """From the classes that student and teacher give."""
    agreement, count = float((100 * (ours == theirs).double()).mean()), len(ours)
    if y is None:
        return Evaluation(None, None, agreement, count, None, None, None, sqnr)
    _check_not_moved(theirs, y)
    hits, float_hits = (100 * (classes == y).double() for classes in (ours, theirs))
    lost = float_hits - hits
    return Evaluation(
        top1=float(hits.mean()),
        float_top1=float(float_hits.mean()),
        agreement=agreement,
        num_images=count,
        top1_error=_standard_error(hits),
        lost=float(lost.mean()),
        lost_error=_standard_error(lost),
        layer_sqnr_db=sqnr,
    )


def batches(data: Any) -> Iterator[Batch]:
    """Batches of images, with labels or None, of all that `evaluate` takes.

    Raises:
        EvaluationError: a batch that is neither images nor (images, labels).
    """
    if isinstance(data, Tensor | np.ndarray):
        data = _as_tensor(data).split(BATCH_SIZE)
    elif isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor | np.ndarray) for part in data):
        x, y = map(_as_tensor, data)
        data = [(x, y)] if y.dim() > 1 else zip(x.split(BATCH_SIZE), y.split(BATCH_SIZE), strict=False)
    for batch in data:
        x, y = batch if isinstance(batch, tuple | list) and len(batch) == 2 else (batch, None)
        if not isinstance(x, Tensor | np.ndarray) or not isinstance(y, Tensor | np.ndarray | None):
            raise EvaluationError(
                f"a batch is {type(batch).__name__}; give images (N, C, H, W), or (images, labels (N,)), as tensors"
            )
        yield _as_tensor(x), None if y is None else _as_tensor(y)


def _as_tensor(x: Tensor | np.ndarray) -> Tensor:
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else x


def _check_x(x: Tensor, teacher: nn.Module) -> None:
    shape = g.shape(g.placeholders(teacher)[0]) if isinstance(teacher, fx.GraphModule) else tuple(x.shape)
    if x.dim() != len(shape) or x.shape[1] != shape[1]:
        sizes = ", ".join(map(str, shape[1:]))
        raise EvaluationError(f"images are {tuple(x.shape)}, the network takes (N, {sizes})")
    if not x.is_floating_point():
        raise EvaluationError(f"images are {x.dtype}; give floats as the network sees them, (x / 255 - mean) / std")
    if not bool(torch.isfinite(x).all()):
        raise EvaluationError("images hold values that are NaN or inf; look at how they are read")


def _check_y(y: Tensor, x: Tensor, num_classes: int) -> None:
    if y.shape != x.shape[:1] or y.is_floating_point():
        raise EvaluationError(
            f"labels are {y.dtype} {tuple(y.shape)} of {len(x)} images; give class indices, integers (N,)"
        )
    wrong = y[(y < 0) | (y >= num_classes)]
    if len(wrong):
        hint = "; where they count from 1, subtract 1" if int(wrong.max()) == num_classes else ""
        raise EvaluationError(
            f"label {int(wrong[0])} is outside of the network's {num_classes} classes; check the labels{hint}"
        )


def _check_not_moved(theirs: Int[Tensor, " n"], y: Int[Tensor, " n"]) -> None:
    """Refuse labels that count from another class than the float network, as those of 1000 classes do for 1001."""
    if len(y) < ENOUGH or len(y.unique()) < 3:  # of two classes, the other one is a bad network's answer
        return
    hits = (theirs == y).double()
    for step, what in ((1, "add 1 to"), (-1, "subtract 1 from")):
        moved = (theirs == y + step).double()
        gain, error = float((moved - hits).mean()), _standard_error(moved - hits)
        if float(moved.mean()) > 2 * float(hits.mean()) and gain > OFF_BY_ONE * error:
            raise EvaluationError(
                f"the float network gives the label to {100 * float(hits.mean()):.1f} % of the images, and to "
                f"{100 * float(moved.mean()):.1f} % the one beside it: {what} the labels (1001 classes begin with one "
                "for background)"
            )


def _standard_error(values: Float[Tensor, " n"]) -> float:
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.inf


def layer_sqnr(student: fx.GraphModule, teacher: fx.GraphModule, x: Tensor) -> dict[str, float]:
    """Signal to noise ratio of each layer's output, decibel, with the whole student running.

    Layers that lost output channels are left out.
    """
    outputs = {layer.node: name for name, layer in g.layers(teacher).items()}
    for node in teacher.graph.nodes:  # the student's layer includes the vector behind the teacher's
        if name := g.note(node).v_o:
            outputs.pop(g.operand(node).name)
            outputs[node.name] = name
    wanted = _values(teacher, x, outputs)
    names = {layer.node: name for name, layer in g.layers(student).items()}
    for node in student.graph.nodes:
        if name := g.note(node).v_o:  # a layer left in float keeps its vector
            names.pop(g.operand(node).name, None)
            names[node.name] = name
    found = _values(student, x, names)
    return {
        n: decibel(float(v.square().mean()), float((v - found[n]).square().mean()))
        for n, v in wanted.items()
        if found[n].shape == v.shape
    }


def _values(graph: fx.GraphModule, x: Tensor, names: dict[str, str]) -> dict[str, Tensor]:
    values = {}
    for node, env in g.walk(graph, (x,)):
        if node.name in names:
            env[node] = values[names[node.name]] = g.execute(node, env)
    return values
