"""What was lost, measured on labelled images."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from datafree import graph as g
from datafree.records import decibel


@dataclass(frozen=True)
class Evaluation:
    """Percent, over `num_images`; standard errors are binomial, that of the loss is of paired differences."""

    top1: float
    float_top1: float
    agreement: float
    num_images: int
    top1_error: float
    lost: float  # float_top1 - top1, points
    lost_error: float
    layer_sqnr_db: dict[str, float]  # of each layer's output against the teacher's, whole network running


def evaluate_models(
    student: nn.Module,
    teacher: nn.Module,
    data: Iterable[tuple[Tensor, Tensor]],
    *,
    layers: bool = True,
) -> Evaluation:
    """Compare student and teacher on labelled images.

    Args:
        student: maps (N, C, H, W) to logits (N, classes).
        teacher: as student.
        data: batches (x, y); y holds class indices (N,).
        layers: whether to compare every layer's output, on the first batch.

    Raises:
        ValueError: no images; logits that are not (N, classes).
    """
    right, float_right, same = [], [], []
    sqnr: dict[str, float] = {}
    with torch.no_grad():
        for x, y in data:
            if layers and not sqnr and isinstance(student, fx.GraphModule) and isinstance(teacher, fx.GraphModule):
                sqnr = layer_sqnr(student, teacher, x)
            ours, theirs = student(x), teacher(x)
            if not isinstance(ours, Tensor) or ours.dim() != 2:
                raise ValueError("top-1 needs a network that returns one tensor of logits (N, classes)")
            wrong = y[(y < 0) | (y >= ours.shape[1])]
            if len(wrong):
                raise ValueError(
                    f"label {int(wrong[0])} is outside of the network's {ours.shape[1]} classes; check the labels"
                )
            right.append(ours.argmax(1) == y)
            float_right.append(theirs.argmax(1) == y)
            same.append(ours.argmax(1) == theirs.argmax(1))
    if not right:
        raise ValueError("there are no images to evaluate on; give batches of (x, y)")
    hits, float_hits, agree = (100 * torch.cat(v).double() for v in (right, float_right, same))
    lost = float_hits - hits
    return Evaluation(
        top1=float(hits.mean()),
        float_top1=float(float_hits.mean()),
        agreement=float(agree.mean()),
        num_images=len(hits),
        top1_error=_standard_error(hits),
        lost=float(lost.mean()),
        lost_error=_standard_error(lost),
        layer_sqnr_db=sqnr,
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
