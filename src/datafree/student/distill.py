"""The student trained as a whole against the teacher: rounding passed through, zeros kept, on images made or given."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from datafree import graph as g
from datafree.execution import DISTILLING, EVERY, ON_CPU, Execution, adam_state, restore_adam, under
from datafree.recipe import Distill, SignalRecipe
from datafree.records import Distilled
from datafree.signals import dead_leaves, in_range
from datafree.solve import Problem, Solution
from datafree.student.assemble import assemble
from datafree.student.distill_images import DistillDivergedError, Images, images_for
from datafree.student.trainable import Trainable

LOOKS = 10  # at images held out, while training
NUM_PROBES = 64
RISE = 3.0  # times the loss at the start, on images held out or on the first batch: from there on it is diverging
SMALL = 0.1  # a start below this share of the answers' variance, or nats, counts as so much


def distill(
    problem: Problem, solution: Solution, method: Distill | None, signal: SignalRecipe, work: Execution = ON_CPU
) -> tuple[Solution, Distilled | None]:
    """Train all layers together so that the student's answer is the teacher's.

        minimise  KL(teacher || student) of their classes, or the mean square of the logits' difference

    by Adam with a falling rate, from the student as solved layer by layer. Zeros stay as they are. Now and then the
    loss is looked at on images held out and on procedural ones; the students that lowered it on both are kept, the
    best of them in the end, and the start where there is none (ours). Without `guard` it is the student of the last
    step, however the loss went, as in the papers of those images.

    Args:
        problem: the teacher whose answers are wanted, and the signal that layers were solved on, whose images are used
            again where they are of the kind asked for.
        method: None = nothing is done.
        signal: how others are made.

    Returns:
        The solution with the layers as they are then, and what happened.

    Raises:
        DistillError: the loss is not finite or, with `guard`, has grown threefold; names the step, the loss and what to
            change.
    """
    if method is None:
        return solution, None
    model = Trainable(assemble(solution), solution.layers)
    images = images_for(problem, method, signal, model, work)
    best = _Best(model, _guards(problem, images.held_out), method)
    _train(model, problem.teacher, images, best, method, work)
    _put(model.parameters(), best.values)
    layers = model.results(solution.layers) if best.step else solution.layers
    done = Distilled(method.loss, best.start[0], best.loss, best.step, method.steps)
    return replace(solution, layers=layers), done


class _Best:
    """The student that lowered the loss most on all guards so far; the start where there is none.

    Where the recipe has no guard, it is the last one looked at.
    """

    def __init__(self, model: Trainable, guards: list[tuple[Tensor, Tensor]], method: Distill) -> None:
        self._model, self._guards, self._method = model, guards, method
        self.start = self._look()
        answers = guards[0][1]
        size = float(answers.var()) if method.loss == "mse" else 1.0
        self.limit = RISE * max(self.start[0], SMALL * size) if method.guard else math.inf
        self.values, self.gain, self.loss, self.step = _copies(model.parameters()), 1.0, self.start[0], 0

    def look(self, step: int) -> None:
        """Keep the model of this step if it is better, or where nothing is guarded."""
        now = self._look()
        self.check(now[0], step)
        gain = max(n / max(s, 1e-12) for n, s in zip(now, self.start, strict=True))
        if gain < self.gain or not self._method.guard:
            self.values, self.gain, self.loss, self.step = _copies(self._model.parameters()), gain, now[0], step

    def begin(self, loss: float) -> None:
        """Note the loss on the first batch, before any step: it may be far above that on images held out."""
        self.limit = max(self.limit, RISE * loss) if math.isfinite(loss) else self.limit

    def check(self, loss: float, step: int) -> None:
        """Stop where training makes the student worse.

        Raises:
            DistillDivergedError: names the step, the loss and what to change.
        """
        if math.isfinite(loss) and loss <= self.limit:
            return
        above = f", above {self.limit:.4g}, {RISE:g} times that of the start" if math.isfinite(loss) else ""
        raise DistillDivergedError(
            f"distillation diverges: the loss is {loss:.4g} at step {step}{above}; lower distill.lr (now "
            f"{self._method.lr:g}), or leave distill out"
        )

    def record(self) -> dict:
        return {"best_gain": self.gain, "best_loss": self.loss, "best_step": self.step, "limit": self.limit}

    def restore(self, values: dict[str, Tensor], record: dict) -> None:
        self.values = values
        self.gain, self.loss, self.step = record["best_gain"], record["best_loss"], record["best_step"]
        self.limit = record["limit"]

    def _look(self) -> list[float]:
        """The loss on each kind of guard."""
        with torch.no_grad():
            return [float(_loss(self._model(x), answers, self._method)) for x, answers in self._guards]


def _train(
    model: Trainable, teacher: fx.GraphModule, images: Images, best: _Best, method: Distill, work: Execution
) -> None:
    """All steps, from the state that was kept if there is one."""
    leaves, checkpoints = model.parameters(), work.checkpoints
    groups = [{"params": [v], "lr": method.lr * max(float(v.detach().abs().max()), 1e-8)} for v in leaves.values()]
    optimizer = torch.optim.Adam(groups)
    rates, first = [group["lr"] for group in groups], 0
    kept = checkpoints.read("distill")
    if kept is not None:
        record = checkpoints.record("distill")
        first = record["step"]
        _put(leaves, under("leaf.", kept))
        best.restore(under("best.", kept), record)
        restore_adam(optimizer, kept)
        images.restore(under("images.", kept))
    for step in range(first, method.steps):
        x = images.batch(model, step)
        with torch.no_grad():
            wanted = g.first_output(teacher, (x,))
        with torch.enable_grad():
            loss = _loss(model(x), wanted, method)
            optimizer.zero_grad()
            loss.backward()
        if step == 0:
            best.begin(float(loss.detach()))
        best.check(float(loss.detach()), step + 1)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - step / method.steps)
        optimizer.step()
        model.keep_scales_positive_()
        work.on_step(DISTILLING, step + 1, method.steps)
        if (step + 1) % max(1, method.steps // LOOKS) == 0 or step + 1 == method.steps:
            best.look(step + 1)
        if (step + 1) % EVERY == 0:
            parts = {"leaf": leaves, "best": best.values, "images": images.state()}
            state = {f"{part}.{name}": v for part, values in parts.items() for name, v in values.items()}
            checkpoints.write("distill", {**state, **adam_state(optimizer)}, {"step": step + 1, **best.record()})


def _loss(student: Tensor, teacher: Tensor, method: Distill) -> Tensor:
    if method.loss == "kl":
        return F.kl_div(F.log_softmax(student, 1), F.softmax(teacher, 1), reduction="batchmean")
    return (student - teacher).square().mean()


def _guards(problem: Problem, held_out: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Images held out, and procedural ones nothing was made from; each with the teacher's answers."""
    known_range, teacher = problem.signal.input_range, problem.teacher
    _, channels, height, width = held_out.shape
    generator = torch.Generator().manual_seed(problem.signal.seed + 2)
    probes = dead_leaves(NUM_PROBES, height=height, width=width, channels=channels, generator=generator)
    kinds = [held_out, *([in_range(probes, known_range)] if known_range.mean else [])]
    with torch.no_grad():
        return [(x, g.first_output(teacher, (x,))) for x in kinds]


def _copies(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in leaves.items()}


def _put(leaves: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, value in leaves.items():
        value.data.copy_(values[name])
