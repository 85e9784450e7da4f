"""Which channels lie side by side, for n:4 patterns: an order in which the least falls out of the cells.

After Pool & Yu, Channel Permutations for N:M Sparsity (NeurIPS 2021), who look for it by the weights' magnitude.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from functools import reduce
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from datafree import graph as g
from datafree.graph import Group, Order
from datafree.records import Stats
from datafree.signals import walk_teacher
from datafree.solve import LayerPlan, Problem

CELL = 4  # channels of a cell: patterns are n:4
ROUNDS, ENOUGH = 400, 30  # pairings of all cells; those in a row without a gain, after which none is looked for
ROWS = 1024  # of weights that an order is judged by
LEAST = 1e-7  # gain, as a share of all


def with_neighbours(problem: Problem) -> Problem:
    """The same network with its channels in an order that n:4 patterns lose least by.

    A pattern keeps the n largest of w_j^2 Var[u_j] among each 4 neighbouring input channels u; channels are dealt to
    cells so that the least falls out, two cells at a time (ours; Pool & Yu deal by |w_j|). All layers that read the
    same channels count alike.
    """
    kept = {name: count for name, item in problem.plan.layers.items() if (count := _count(item))}
    sets = g.interchangeable(problem.teacher) if kept else []
    readers = {groups: names for groups in sets if (names := _readers(groups, kept))}
    if not readers:
        return problem
    spreads = _spreads(problem, {name for names in readers.values() for name in names})
    orders = [_order(problem, groups, names, kept[names[0]], spreads) for groups, names in readers.items()]
    teacher, signal = g.duplicate(problem.teacher), problem.signal
    moved = g.reorder_(teacher, orders)
    stats, inputs = _reordered(signal.stats, moved), _reordered(signal.input_stats, moved)
    return replace(problem, teacher=teacher, signal=replace(signal, stats=stats, input_stats=inputs))


def _count(item: LayerPlan) -> int:
    """How many of each 4 weights stay; 0 = the layer has no such pattern."""
    pattern = item.weights.prune.pattern if item.weights and item.weights.prune else None
    return pattern[0] if pattern and pattern[1] == CELL else 0


def _readers(groups: tuple[Group, ...], kept: dict[str, int]) -> list[str]:
    """Pruned layers that read these channels one by one, and all in the same cells as the first of them does."""
    places = {n: _places(groups, n) for n, indices in groups[0].consumers if n in kept and len(indices) == 1}
    apart = {name: own - next(iter(places.values())) for name, own in places.items()}
    return [name for name, by in apart.items() if bool((by == by[0]).all()) and by[0] % CELL == 0]


def _places(groups: tuple[Group, ...], name: str) -> Int[Tensor, " c"]:
    return torch.tensor([dict(group.consumers)[name][0] for group in groups])


def _spreads(problem: Problem, names: set[str]) -> dict[str, Float[Tensor, " c"]]:
    """Variance of every input channel of these layers, in the teacher."""
    reads: dict[Any, list[str]] = defaultdict(list)
    axes: dict[str, int] = {}
    for node in problem.teacher.graph.nodes:
        if (name := g.note(node).layer) in names:
            reads[g.operand(node)].append(name)
            axes[name] = g.LAYER_TYPES[node.target].channel_axis
    found = {}
    for node, value in walk_teacher(problem.teacher, problem.signal):
        for name in reads.get(node, ()):
            found[name] = value.movedim(axes[name], 0).flatten(1).var(1, correction=0)
    return found


def _order(
    problem: Problem, groups: tuple[Group, ...], names: list[str], count: int, spreads: dict[str, Tensor]
) -> Order:
    """Where the channels of one set go."""
    groups = tuple(sorted(groups, key=lambda group: dict(group.consumers)[names[0]]))
    places = _places(groups, names[0])
    sizes = torch.bincount(places // CELL)
    whole = (sizes[places // CELL] == CELL).nonzero().flatten()  # numbers of groups that fill cells of their own
    score = torch.cat([_score(problem, n, _places(groups, n)[whole], spreads[n], ROWS // len(names)) for n in names])
    order = torch.arange(len(groups))
    order[whole] = whole[dealt(score, count)]
    return groups, tuple(order.tolist())


def _score(problem: Problem, name: str, places: Tensor, spread: Tensor, most: int) -> Float[Tensor, "r c"]:
    """w_j^2 Var[u_j] of some output channels and places of the kernel, as a share of all of the layer's."""
    weight = g.weight(problem.teacher, problem.plan.layers[name].layer)
    score = weight.reshape(*weight.shape[:2], -1).movedim(2, 1).flatten(0, 1).square() * spread
    step = math.ceil(len(score) / most)
    return score[::step][:, places] / score[::step].sum().clamp(min=1e-30)


def dealt(score: Float[Tensor, "r c"], count: int) -> Int[Tensor, " c"]:
    """An order of the columns in which the sum over rows of the `count` largest of each 4 neighbours is large.

    Cells are paired at random, and the 8 columns of a pair dealt anew in the best of the 35 ways, again and again.
    """
    cells = torch.arange(score.shape[1]).view(-1, CELL)
    ways = torch.tensor(_WAYS)
    generator, idle, least = torch.Generator().manual_seed(0), 0, LEAST * float(score.sum())
    for _ in range(ROUNDS):
        pairs = torch.randperm(len(cells), generator=generator)[: len(cells) // 2 * 2].view(-1, 2)
        both = cells[pairs].flatten(1)
        kept = _kept(score[:, both.T].movedim(1, 0), count)
        best = kept.argmax(0)
        better = kept.gather(0, best[None])[0] > kept[0] + least
        idle = 0 if bool(better.any()) else idle + 1
        if idle == ENOUGH:
            break
        cells[pairs[better]] = both[better].gather(1, ways[best[better]]).view(-1, 2, CELL)
    return cells.flatten()


_WAYS = [[0, *rest, *sorted({*range(2 * CELL)} - {0, *rest})] for rest in combinations(range(1, 2 * CELL), CELL - 1)]
"""Two cells from eight columns; the first way leaves them as they are."""


def _kept(x: Float[Tensor, "8 r p"], count: int) -> Float[Tensor, "35 p"]:
    """Sum over rows of the `count` largest of each cell, for every way to deal out a pair of cells."""
    largest = {  # of two columns: none, the larger, both
        pair: (torch.zeros_like(x[0]), torch.maximum(x[pair[0]], x[pair[1]]), x[pair[0]] + x[pair[1]])
        for pair in combinations(range(2 * CELL), 2)
    }

    def of_cell(a: int, b: int, c: int, d: int) -> Tensor:
        one, two = largest[a, b], largest[c, d]
        splits = [one[i] + two[count - i] for i in range(3) if 0 <= count - i <= 2]
        return reduce(torch.maximum, splits).sum(0)

    return torch.stack([of_cell(*way[:CELL]) + of_cell(*way[CELL:]) for way in _WAYS])


def _reordered(stats: Stats, moved: dict[str, Tensor]) -> Stats:
    return {name: own.at(moved[name]) if name in moved else own for name, own in stats.items()}
