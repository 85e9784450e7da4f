"""The student trained as a whole against the teacher: rounding passed through, zeros kept, on images made or given."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from datafree.assemble import assemble
from datafree.checkpoints import EVERY, NOTHING_KEPT, Checkpoints, OnStep, adam_state, ignore_steps, restore_adam
from datafree.distill_images import DistillError, images_for
from datafree.layer import Grids
from datafree.plan import Plan
from datafree.recipe import Distill, Recipe
from datafree.records import InputRange, LayerResult
from datafree.signals.matching import in_range
from datafree.signals.probes import dead_leaves
from datafree.signals.source import Source
from datafree.trainable import Trainable

LOOKS = 10  # at images held out, while training
NUM_PROBES = 64
RISE = 3.0  # times the loss at the start: from there on it is diverging
SMALL = 0.1  # a start below this share of the answers' variance, or nats, counts as so much


def distill(
    teacher: fx.GraphModule,
    smaller: fx.GraphModule,
    plan: Plan,
    results: dict[str, LayerResult],
    grids: Grids,
    source: Source,
    known_range: InputRange,
    recipe: Recipe,
    *,
    device: str = "cpu",
    on_step: OnStep = ignore_steps,
    checkpoints: Checkpoints = NOTHING_KEPT,
) -> tuple[dict[str, LayerResult], str]:
    """Train all layers together so that the student's answer is the teacher's.

        minimise  KL(teacher || student) of their classes, or the mean square of the logits' difference

    by Adam with a falling rate, from the student as solved layer by layer. Zeros stay as they are. Now and then the
    loss is looked at on images held out and on procedural ones; the students that lowered it on both are kept, the
    best of them in the end, and the start where there is none (ours).

    Args:
        teacher: whose answers are wanted.
        smaller: the same without the channels that were removed, which the student is assembled from.
        results: solved layers; those not in it stay as they are.
        source: the signal layers were solved on; its images are used again where they are of the kind asked for.
        known_range: mean and std of the network's input.

    Returns:
        The layers, and one line that says what happened; empty where the recipe asks for no distillation.

    Raises:
        DistillError: the loss is not finite or has grown threefold; names the step, the loss and what to change.
    """
    method = recipe.distill
    if method is None:
        return results, ""
    model = Trainable(assemble(smaller, plan, results, grids), results)
    images = images_for(
        teacher, source, known_range, recipe, model, device=device, on_step=on_step, checkpoints=checkpoints
    )
    leaves = model.parameters()
    groups = [{"params": [v], "lr": method.lr * max(float(v.detach().abs().max()), 1e-8)} for v in leaves.values()]
    optimizer = torch.optim.Adam(groups)
    rates = [group["lr"] for group in groups]
    guards = _guards(teacher, images.held_out, known_range, source.seed)
    start_loss, start_probes = _look(model, guards, method)
    answers = guards[0][1]
    limit = RISE * max(start_loss, SMALL * (float(answers.var()) if method.loss == "mse" else 1.0))
    best, best_gain, best_loss, best_step, first = _copies(leaves), 1.0, start_loss, 0, 0
    kept = checkpoints.read("distill")
    if kept is not None:
        record = checkpoints.record("distill")
        first, best_step = record["step"], record["best_step"]
        best_gain, best_loss = record["best_gain"], record["best_loss"]
        _put(leaves, {n: kept[f"leaf.{n}"] for n in leaves})
        best = {n: kept[f"best.{n}"] for n in leaves}
        restore_adam(optimizer, kept)
        images.restore({k.removeprefix("images."): v for k, v in kept.items() if k.startswith("images.")})
    for step in range(first, method.steps):
        x = images.batch(model, step)
        with torch.no_grad():
            wanted = _first(teacher(x))
        with torch.enable_grad():
            loss = _loss(model(x), wanted, method)
            optimizer.zero_grad()
            loss.backward()
        _check(float(loss.detach()), step, limit, method)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - step / method.steps)
        optimizer.step()
        on_step("distilling", step + 1, method.steps)
        if (step + 1) % max(1, method.steps // LOOKS) == 0:
            now, on_probes = _look(model, guards, method)
            _check(now, step, limit, method)
            gain = max(now / max(start_loss, 1e-12), on_probes / max(start_probes, 1e-12))
            if gain < best_gain:
                best, best_gain, best_loss, best_step = _copies(leaves), gain, now, step + 1
        if (step + 1) % EVERY == 0:
            state = {f"leaf.{n}": v for n, v in leaves.items()} | {f"best.{n}": v for n, v in best.items()}
            state |= {f"images.{n}": v for n, v in images.state().items()}
            record = {"step": step + 1, "best_gain": best_gain, "best_loss": best_loss, "best_step": best_step}
            checkpoints.write("distill", {**state, **adam_state(optimizer)}, record)
    _put(leaves, best)
    fell = f"{start_loss:.3g} -> {best_loss:.3g}"
    said = f"{method.loss} on images held out {fell} after {best_step} of {method.steps} steps"
    return (model.results(results), said) if best_step else (results, f"{said}: nothing gained, the start is kept")


def _loss(student: Tensor, teacher: Tensor, method: Distill) -> Tensor:
    if method.loss == "kl" and teacher.dim() == 2:
        return F.kl_div(F.log_softmax(student, 1), F.softmax(teacher, 1), reduction="batchmean")
    return (student - teacher).square().mean()


def _guards(
    teacher: fx.GraphModule, held_out: Tensor, known_range: InputRange, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Images held out, and procedural ones nothing was made from; each with the teacher's answers."""
    _, channels, height, width = held_out.shape
    generator = torch.Generator().manual_seed(seed + 2)
    probes = dead_leaves(NUM_PROBES, height=height, width=width, channels=channels, generator=generator)
    kinds = [held_out, in_range(probes, known_range) if known_range.mean else held_out]
    with torch.no_grad():
        return [(x, _first(teacher(x))) for x in kinds]


def _look(model: Trainable, guards: list[tuple[Tensor, Tensor]], method: Distill) -> list[float]:
    """The loss on each kind of guard."""
    with torch.no_grad():
        return [float(_loss(model(x), answers, method)) for x, answers in guards]


def _check(loss: float, step: int, limit: float, method: Distill) -> None:
    """Stop where training makes the student worse.

    Raises:
        DistillError: names the step, the loss and what to change.
    """
    if not loss <= limit:
        raise DistillError(
            f"distillation diverges: the loss is {loss:.4g} at step {step + 1}, above {limit:.4g}, {RISE:g} times that "
            f"of the start; lower distill.lr (now {method.lr:g}), or leave distill out"
        )


def _first(output: Any) -> Tensor:
    """The first tensor of what a network returns."""
    return (
        output
        if isinstance(output, Tensor)
        else _first(next(iter(output.values() if isinstance(output, dict) else output)))
    )


def _copies(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in leaves.items()}


def _put(leaves: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, value in leaves.items():
        value.data.copy_(values[name])
