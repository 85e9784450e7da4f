"""The images a student is distilled on: as they are, or made on the way by a generator trained against it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, fx

from datafree import graph as g
from datafree.execution import ON_CPU, Execution, OnStep
from datafree.recipe import Adversarial, Distill, SignalRecipe
from datafree.records import DivergedError
from datafree.signals import Adversary, Competitor, made, new_adversary, signal_job
from datafree.solve import Problem

HELD_OUT = 4  # one image in so many is never trained on
JITTER = 8  # the side over this is the reach of the random shift

Student = Callable[[Tensor], Tensor]


class DistillError(ValueError):
    """A loss that is no number or grows, or images the student cannot be trained on."""


class DistillDivergedError(DistillError, DivergedError):
    """A loss that is no number, or grows."""


class Given:
    """Images that stay as they are, drawn at random, blended in pairs and seen through a random shift and flip."""

    def __init__(self, images: Float[Tensor, "n c h w"], *, size: int, rng: torch.Generator) -> None:
        order = torch.randperm(len(images), generator=rng)
        cut = max(1, len(images) // HELD_OUT)
        self.held_out, self._seen = images[order[:cut]], images[order[cut:]] if len(images) > 1 else images
        self._size, self._rng = size, rng

    def batch(self, student: Student, step: int) -> Float[Tensor, "n c h w"]:
        chosen = torch.randint(len(self._seen), (min(self._size, len(self._seen)),), generator=self._rng)
        reach = max(1, min(self._seen.shape[2:]) // JITTER)
        shift = torch.randint(-reach, reach + 1, (2,), generator=self._rng).tolist()
        x = torch.roll(self._seen[chosen], shift, (2, 3))
        share = torch.rand(len(x), 1, 1, 1, generator=self._rng)
        mixed = torch.lerp(x, x[torch.randperm(len(x), generator=self._rng)], share)
        return mixed.flip(3) if step % 2 else mixed

    def state(self) -> dict[str, Tensor]:
        return {"rng": self._rng.get_state()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self._rng.set_state(tensors["rng"])


class Generated:
    """Images of a generator that moves at every step to where the student is wrong (AKD, arXiv 2005.04136)."""

    def __init__(self, adversary: Adversary, on_step: OnStep) -> None:
        self._adversary = adversary
        warmup = adversary.method.warmup
        for step in range(warmup):
            adversary.step(None)
            on_step("warming up the generator", step + 1, warmup)
        with torch.no_grad():
            self.held_out = adversary.images(4 * adversary.method.batch)

    def batch(self, student: Student, step: int) -> Float[Tensor, "n c h w"]:
        return self._adversary.step(student)

    def state(self) -> dict[str, Tensor]:
        return {**self._adversary.state(), "held_out": self.held_out}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self._adversary.restore(tensors)
        self.held_out = tensors["held_out"]


Images = Given | Generated
"""`held_out` (m, C, H, W); `batch(student, step)`; `state()` and `restore(tensors)`, for checkpoints."""


def check_distillation(teacher: fx.GraphModule, method: Distill | None, signal: SignalRecipe) -> None:
    """Refuse what cannot be distilled before anything takes long.

    Raises:
        DistillError: a network of several inputs, or of one that is no image; images nobody gave; classes it has not.
    """
    if method is None:
        return
    shapes = [g.shape(node)[1:] for node in g.placeholders(teacher)]
    if len(shapes) != 1 or len(shapes[0]) != 3:
        raise DistillError(f"distillation needs one image input (C, H, W), this network takes {shapes}; leave it out")
    if method.images == "loader" and signal.kind != "loader":
        raise DistillError("distill.images is 'loader' but no images were given; set signal.kind=loader too")
    returned = g.shape(g.outputs(teacher)[0])
    if method.loss == "kl" and len(returned) != 2:
        raise DistillError(f"distill.loss is 'kl', of classes (N, C), but this network returns {returned}; take mse")


def images_for(
    problem: Problem, method: Distill, recipe: SignalRecipe, student: Student, work: Execution = ON_CPU
) -> Images:
    """The images that `distill.images` asks for; those of the signal where it is of that kind.

    A student takes part in making them only on the CPU, where it is; `work.device` counts for the others.
    """
    signal, seed = problem.signal, problem.signal.seed + 1
    rng = torch.Generator().manual_seed(seed)
    if method.images == "adversarial":
        asked = recipe if isinstance(recipe, Adversarial) else Adversarial()
        asked = asked.model_copy(update={"batch": method.batch})
        adversary = new_adversary(problem.teacher, signal.stats, asked, input_range=signal.input_range, rng=rng)
        return Generated(adversary, work.on_step)
    images = signal.inputs[0]
    if signal.kind != method.images or method.compete:
        asked = recipe if recipe.kind == method.images else SignalRecipe.chosen({"kind": method.images})
        competitor = Competitor(student, method.compete) if method.compete else None
        work = replace(work, device="cpu") if competitor else work
        job = signal_job(problem.teacher, signal.stats, asked, seed, signal.input_range)
        more = made(replace(job, competitor=competitor, work=work.part("distill"))).inputs[0]
        images = more if signal.kind != method.images else torch.cat([images, more])
    return Given(images, size=method.batch, rng=rng)
