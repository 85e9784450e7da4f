"""Channels in another order: which of them may change places, and the same network with others side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Int
from torch import Tensor, fx

from datafree.graph import view as g
from datafree.graph.annotations import note, operand
from datafree.graph.channel_groups import Group, Members, classes_of
from datafree.graph.layer_types import LAYER_TYPES, weight_node

Order = tuple[tuple[Group, ...], tuple[int, ...]]
"""Groups that may change places, and at each of their places the number of the one that comes there."""


def interchangeable(teacher: fx.GraphModule) -> list[tuple[Group, ...]]:
    """Sets of channels that pass through the same nodes, so that any order of theirs gives the same network.

    Channels that a tensor between layers knows by their place (a slope, a kept BatchNorm) are left out.

    Args:
        teacher: a captured graph, BatchNorm folded, equalized or not.
    """
    classes = classes_of(teacher)
    passed: dict[int, list[str]] = defaultdict(list)
    for node, ids in classes.nodes.items():
        for number in ids.unique().tolist():
            passed[number].append(node.name)
    sets: dict[object, list[Group]] = defaultdict(list)
    for group, number in classes.groups.items():
        if not group.vectors:
            sets[_sizes(group.producers), _sizes(group.consumers), tuple(passed[number])].append(group)
    return [tuple(groups) for groups in sets.values() if len(groups) > 1]


def reorder_(teacher: fx.GraphModule, orders: Iterable[Order]) -> dict[str, Int[Tensor, " c"]]:
    """Let channels change places in place: the network computes what it computed, up to rounding.

    Args:
        teacher: the graph that the groups were found in, by `interchangeable`.

    Returns:
        By node, where each channel (dimension 1) of its value was before; nodes whose channels stay are left out.
    """
    classes = classes_of(teacher)
    comes = {
        classes.groups[here]: classes.groups[groups[number]]
        for groups, order in orders
        for here, number in zip(groups, order, strict=True)
    }
    for node in (n for n in teacher.graph.nodes if note(n).layer):
        axis, parameter = LAYER_TYPES[node.target].channel_axis, weight_node(node)
        rows, columns = (_were(_along(classes.nodes.get(n), axis), comes) for n in (node, operand(node)))
        weight, bias = g.tensor_of(teacher, parameter), operand(node, 2)
        if columns is not None:
            own = weight.shape[1]  # of one convolution group; all of them have the same order
            weight = weight[:, columns[:own] % own]
        if rows is not None:
            weight = weight[rows]
            g.set_tensor(teacher, str(bias.target), g.tensor_of(teacher, bias)[rows])
        g.set_tensor(teacher, str(parameter.target), weight.contiguous())
    plain = {node.name: ids for node, ids in classes.nodes.items() if ids.dim() > 1 and _is_along(ids, 1)}
    found = {name: _were(_along(ids, 1), comes) for name, ids in plain.items()}
    return {name: were for name, were in found.items() if were is not None}


def _sizes(members: Members) -> tuple[tuple[str, int], ...]:
    return tuple((name, len(indices)) for name, indices in members)


def _along(ids: Tensor | None, axis: int) -> list[int]:
    """The class of every channel."""
    return [] if ids is None else ids.movedim(axis, 0).flatten(1)[:, 0].tolist()


def _is_along(ids: Tensor, axis: int) -> bool:
    """Whether classes differ along this dimension alone."""
    channels = ids.movedim(axis, 0).flatten(1)
    return bool((channels == channels[:, :1]).all())


def _were(classes: list[int], comes: Mapping[int, int]) -> Int[Tensor, " c"] | None:
    """For every channel, the place of the one that comes to it; None where all stay."""
    places: dict[int, list[int]] = defaultdict(list)
    for place, number in enumerate(classes):
        places[number].append(place)
    moved = list(range(len(classes)))
    for number, here in places.items():
        for place, other in zip(here, places[comes.get(number, number)], strict=True):
            moved[place] = other
    return None if moved == list(range(len(classes))) else torch.tensor(moved)
