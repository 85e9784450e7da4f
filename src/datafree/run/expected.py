"""What a compression will spend, counted from its plan before it begins: for progress, time and memory (ours)."""

from __future__ import annotations

import math
from pathlib import Path

from torch import fx

from datafree import graph as g
from datafree.execution import ALL_IN_MEMORY, CHOOSING, DISTILLING, MAKING_IMAGES, SOLVING, ExpectedWork, Room
from datafree.recipe import Recipe, RoundingRecipe
from datafree.signals import BACKWARD, images_asked, images_at_once, signal_kind, takes_probes
from datafree.solve import MAX_TAPS, NUM_ROWS, LayerPlan, Plan, rounding_method

WALK = 2.2  # copies of the tensors on the way
BATCH = 64  # images moved together
BASE = 420 * 2**20  # bytes of Python and torch before there is a network
CAPTURED = 17  # bytes of a weight while the network is captured
ONE = 4  # copies of the tensors of one image on its way
SOLVES, ZEROS = 6, 300  # products of a layer's weights with H: the grids tried and polishing; zeros chosen in rounds
PROBES = 2  # walks through the network for each layer whose errors are looked at there


class MemoryLimitError(ValueError):
    """A limit that is less than what one image at a time takes."""


def room_within(
    teacher: fx.GraphModule, plan: Plan, recipe: Recipe, memory: int | None, place: Path | None, *, remembers: bool
) -> Room:
    """What a limit of so many bytes, for the whole process, leaves for tensors on their way through the network.

    A figure of the network and the limit alone, so that every machine makes the same parts.

    Args:
        place: where tensors wait that do not fit.
        remembers: whether BatchNorm tells what images have to be like.

    Raises:
        MemoryLimitError: it leaves no room for one image; says what would.
    """
    if memory is None:
        return ALL_IN_MEMORY
    images = _num_images(teacher, recipe, remembers=remembers) * sum(
        math.prod(g.shape(node)[1:]) for node in g.placeholders(teacher)
    )
    size = memory - BASE - _at_rest(teacher) - 4 * images - _solving_memory(teacher, plan, recipe.solve)
    least = ONE * 4 * g.numbers_held(teacher)[0]
    enough = max(memory - size + least, BASE + CAPTURED * g.num_parameters(teacher))
    if memory < enough:
        raise MemoryLimitError(
            f"memory={memory:,} bytes are too few: Python, torch, weights, images and one layer's moments take "
            f"about {memory - size:,}, and an image on its way {least:,}; give {enough:,} or more"
        )
    return Room(size, place)


def expected_work(
    teacher: fx.GraphModule, plan: Plan, recipe: Recipe, *, remembers: bool, room: Room = ALL_IN_MEMORY
) -> ExpectedWork:
    """Multiply-adds of every phase that comes, and memory, from what the recipe asks for.

    Right within a factor of two, memory within a third, on the networks it was tried on.

    Args:
        remembers: whether BatchNorm tells what images have to be like.
    """
    forward, made = sum(g.layer_macs(teacher).values()), images_asked(teacher, recipe.signal)
    count = _num_images(teacher, recipe, remembers=remembers)
    solved = [item for item in plan.layers.values() if item.weights is not None]
    walk = count * forward
    layers = sum(_solving(teacher, item, recipe.solve, count) for item in solved)
    zeros = ZEROS * sum(_product(teacher, item) for item in solved) if recipe.prune else 0
    chooses = recipe.budget is not None or recipe.prune is not None
    found = {
        MAKING_IMAGES: signal_kind(recipe.signal).passes(recipe.signal, teacher, made, remembers) * forward,
        CHOOSING: walk * (1 + PROBES * len(solved)) + layers + zeros if chooses else 0,
        SOLVING: walk * (2 if recipe.solve.sequential else 1) + layers + zeros,
        DISTILLING: 4 * recipe.distill.steps * recipe.distill.batch * forward if recipe.distill else 0,
    }
    phases = {phase: macs for phase, macs in found.items() if macs}
    solving = _solving_memory(teacher, plan, recipe.solve)
    memory = _memory(teacher, solving, count, room, moves=MAKING_IMAGES in phases)
    return ExpectedWork(forward, len(solved), phases, memory)


def _num_images(teacher: fx.GraphModule, recipe: Recipe, *, remembers: bool) -> int:
    """How many layers are solved on, procedural ones among them."""
    made, probes = images_asked(teacher, recipe.signal), recipe.prune is not None and recipe.prune.probes
    return 2 * made if probes and takes_probes(teacher, recipe.signal, made, remembers=remembers) else made


def _product(teacher: fx.GraphModule, item: LayerPlan) -> int:
    """One layer's weights times H."""
    weight = g.grouped(g.weight(teacher, item.layer), item.layer.groups)
    return weight.numel() * min(weight.shape[2], MAX_TAPS)


def _solving(teacher: fx.GraphModule, item: LayerPlan, method: RoundingRecipe, count: int) -> int:
    """One layer: the moments of its inputs, and the solutions."""
    row, weight = rounding_method(method), g.weight(teacher, item.layer)
    trained = 3 * row.num_rows(method) * weight.numel() if row.num_rows else 0
    if row.moments == "diagonal":
        return trained
    taps = g.grouped(weight, item.layer.groups).shape[2]
    rows = min(NUM_ROWS["covariance"], count * math.prod(g.shape(g.node_of(teacher, item.layer.node))[2:]))
    moments = rows * item.layer.groups * taps * min(taps, MAX_TAPS)
    return trained + moments + SOLVES * _product(teacher, item)


def _memory(teacher: fx.GraphModule, solving: int, count: int, room: Room, *, moves: bool) -> int:
    """Bytes of weights, of the signal on its way or of a layer's H, or of what a backward pass remembers."""
    widest, computed = g.numbers_held(teacher)
    walk = WALK * 4 * count * widest
    backward = BACKWARD * 4 * min(count, BATCH, images_at_once(teacher, room)) * computed if moves else 0
    most = max(walk, solving, backward) if room.size is None else max(min(walk, room.size) + solving, backward)
    return round(max(CAPTURED * g.num_parameters(teacher), _at_rest(teacher) + most))


def _at_rest(teacher: fx.GraphModule) -> int:
    """Bytes of the weights, those of the model that was given too, and of integers as they come, in 16 bits."""
    return 10 * g.num_parameters(teacher)


def _solving_memory(teacher: fx.GraphModule, plan: Plan, method: RoundingRecipe) -> int:
    """Bytes of the largest H, in double precision, and what is made of it; in sequence also of both halves' H and C."""
    taps = max((g.weight(teacher, i.layer)[0].numel() for i in plan.layers.values()), default=0)
    return (5 if method.sequential else 2) * 8 * min(taps, MAX_TAPS) ** 2
