"""Whole channels: which must go together, and a network without them that is smaller and still dense.

A channel is followed through everything that keeps it apart from the others (`channel_ids.py`). Whoever makes it loses
a row, whoever reads it loses columns, and what lies between (a slope, a kept BatchNorm, v_o) loses an entry.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, fx

from datafree.graph import view as g
from datafree.graph.annotations import annotate, layer_name, note, operand, shape
from datafree.graph.channel_ids import ChannelTracer
from datafree.graph.layer_types import LAYER_TYPES, read_layer, set_parameters, weight_node
from datafree.graph.operators import argument, aten, operator_of, set_argument
from datafree.records import Skipped

Members = tuple[tuple[str, tuple[int, ...]], ...]


class ChannelsError(ValueError):
    """Channels that cannot be removed."""


@dataclass(frozen=True)
class Group:
    """Channels that can only go together, by layer or tensor: the smallest unit of channel pruning.

    Several indices of one layer belong to one group behind a flatten (features of one channel), in a depthwise layer
    with a multiplier, and in a grouped one, where every convolution group loses the same position.
    """

    producers: Members  # (layer, output channels)
    consumers: Members  # (layer, input channels of all convolution groups, or input features)
    vectors: Members  # (path of a tensor between layers, entries along its channel axis)


@dataclass(frozen=True)
class Classes:
    """The class of every channel of every tensor, classes numbered from 0."""

    groups: dict[Group, int]  # only what may be removed
    nodes: dict[fx.Node, Int[Tensor, "..."]]  # broadcast to the node's shape; tensors between layers included
    skipped: tuple[Skipped, ...]
    count: int


def channel_groups(teacher: fx.GraphModule) -> tuple[Group, ...]:
    """Find every channel that may be removed, with all that has to go with it, in execution order.

    Args:
        teacher: a captured graph, BatchNorm folded, equalized or not.
    """
    return tuple(classes_of(teacher).groups)


def unremovable(teacher: fx.GraphModule) -> tuple[Skipped, ...]:
    """Layers whose output channels, or some of them, are in no group, and why."""
    return classes_of(teacher).skipped


def described(groups: Iterable[Group]) -> list[str]:
    """One line for each set of layers: `conv1 + layer1.0.conv2 -> layer1.0.conv1 + fc: 16 channels`."""
    sets: dict[tuple[str, str], list[int]] = defaultdict(list)
    for group in groups:
        sets[_names(group.producers), _names(group.consumers)].append(max(len(c) for _, c in group.producers))
    return [f"{made} -> {read}: {_count(sizes)}" for (made, read), sizes in sets.items()]


def _names(members: Members) -> str:
    names = [name for name, _ in members]
    return " + ".join(names if len(names) <= 3 else [*names[:2], f"{len(names) - 2} more"]) or "nothing"


def _count(sizes: list[int]) -> str:
    if set(sizes) == {1}:
        return f"{len(sizes)} channel{'s' * (len(sizes) > 1)}"
    return " + ".join(f"{number} x {size}" for size, number in Counter(sizes).items()) + " channels"


def remove_(teacher: fx.GraphModule, groups: Iterable[Group]) -> dict[str, Bool[Tensor, " c"]]:
    """Remove whole channels in place: the network stays dense, with the same layers and outputs, and is smaller.

    It computes what it computed with the consumers' weights for these channels set to zero.

    Args:
        teacher: the graph that `groups` were found in, by `channel_groups`.

    Returns:
        Which channels of dimension 1 are still there, by node.

    Raises:
        ChannelsError: a layer would be left without channels, or the groups are of another graph.
    """
    classes = classes_of(teacher)
    gone = torch.zeros(classes.count, dtype=torch.bool)
    for group in groups:
        if group not in classes.groups:
            raise ChannelsError(
                f"{described([group])[0]} is no group of this graph; find groups anew with channel_groups(teacher) "
                "after every change of its channels"
            )
        gone[classes.groups[group]] = True
    _check_not_empty({node: gone[ids] for node, ids in classes.nodes.items()})
    kept = {node: _kept(~gone[ids], shape(node)) for node, ids in classes.nodes.items()}
    for node in teacher.graph.nodes:
        if note(node).layer:
            _shrink_layer(teacher, node, kept)
        elif node.op == "get_attr" and node in kept:
            g.set_tensor(teacher, str(node.target), _sliced(g.tensor_of(teacher, node), kept[node]))
        elif node.op == "call_function":
            _shrink_arguments(node, kept)
    for node, masks in kept.items():
        annotate(node, shape=tuple(int(mask.sum()) for mask in masks))
    g.tidy(teacher)
    return {node.name: masks[1] for node, masks in kept.items() if len(masks) > 1}


# ---- which channels go together


class _GroupTracer(ChannelTracer):
    """Ids of channels, united further where the network would not stay dense if one went without the other."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph, homogeneous=False)
        self.returned = set(g.outputs(graph))
        self.vectors: dict[fx.Node, Tensor] = {}
        self.reasons: dict[int, str] = {}  # why an id is blocked

    def freeze(self, ids: object, reason: str) -> None:
        self._block(ids)
        self._explain(reason)

    def _explain(self, reason: str) -> None:
        self.reasons.update(dict.fromkeys(self.blocked_ids - self.reasons.keys(), reason))

    def _call(self, node: fx.Node) -> Any:
        ids, sources = super()._call(node), node.all_input_nodes
        name = str(getattr(node.target, "__name__", node.target)).partition(".")[0]
        row = operator_of(node)
        self._explain(f"{name} ({node.name}) does not keep channels apart")
        self.freeze([self.ids[n] for n in sources if n.op == "placeholder"], "tied to the network's input")
        if not _is_followed(node, ids):
            self.freeze([ids, *(self.ids.get(n) for n in sources)], f"{name} ({node.name}) cannot lose channels")
        if node in self.returned:
            self.freeze(ids, "the network returns it")
        if note(node).layer:
            self._couple_groups(node, ids)
        elif isinstance(ids, Tensor):
            self._couple_axes(ids)
            for vector in (n for n in sources if n.op == "get_attr" and row.channels in ("keeps", "unites", "gates")):
                self._enter_vector(vector, ids, is_slope=node.target is aten.prelu.default)
        return ids

    def _couple_groups(self, node: fx.Node, ids: Tensor) -> None:
        """Depthwise: a channel goes with all it makes. Grouped: all convolution groups lose the same position."""
        groups, source = read_layer(node).groups, self.ids[operand(node)]
        if groups == 1:
            return
        if source.numel() != shape(operand(node))[1]:
            self.freeze(ids, "its input channels are not known one by one")
        elif source.numel() == groups:
            self._unite(source.view(groups, 1), ids.view(groups, -1))
        else:
            for channels in (source.view(groups, -1), ids.view(groups, -1)):
                self._unite(channels, channels[:1])

    def _couple_axes(self, ids: Tensor) -> None:
        """Channels seen as (2, C/2), as a shuffle does: both rows lose the same position."""
        for d in range(ids.dim()):
            if d != channel_axis_of(ids):
                self._unite(ids, ids.narrow(d, 0, 1))

    def _enter_vector(self, vector: fx.Node, ids: Tensor, *, is_slope: bool) -> None:
        """Give a constant operand the ids of the tensor it meets, right-aligned as broadcasting does."""
        axis, sides = channel_axis_of(ids), shape(vector)
        own = 0 if is_slope else axis - ids.dim() + len(sides)
        if own < 0 or not sides or sides[own] == 1:
            return
        channels = ids.movedim(axis, 0).flatten(1)[:, 0].view([-1 if d == own else 1 for d in range(len(sides))])
        self.vectors[vector] = self._unite(channels, self.vectors.get(vector, channels))


def channel_axis_of(ids: Tensor) -> int:
    return max(range(ids.dim()), key=lambda d: ids.shape[d])


def _is_followed(node: fx.Node, ids: object) -> bool:
    """Whether `remove_` knows what an operator does once channels are gone."""
    removal = operator_of(node).removal
    if not removal:
        return False
    if not isinstance(ids, Tensor):
        return True
    if removal == "slice" and argument(node, "step") != 1:
        return ids.shape[argument(node, "dim")] == 1
    return ids.dim() < 2 or ids.shape[0] == 1  # channels and images do not share a dimension


def classes_of(teacher: fx.GraphModule) -> Classes:
    tracer = _GroupTracer(teacher)
    found = tracer.result()
    for side in [*found.producers, *found.consumers]:
        if len(set(side.classes.tolist())) == 1:
            tracer.freeze(side.classes, f"all channels of {side.layer} would go together")
    roots = torch.tensor([tracer._find(i) for i in range(len(tracer.parent))])
    nodes = {n: roots[ids] for n, ids in [*tracer.ids.items(), *tracer.vectors.items()] if isinstance(ids, Tensor)}
    frozen = {int(roots[i]): reason for i, reason in reversed(tracer.reasons.items())}
    sides = (
        [(side.layer, side.classes) for side in found.producers],
        [(side.layer, side.classes) for side in found.consumers],
        [(str(node.target), nodes[node].flatten()) for node in tracer.vectors],
    )
    made, read, between = (_members(side) for side in sides)
    groups = {Group(made[c], read.get(c, ()), between.get(c, ())): c for c in made if c not in frozen}
    skipped = []
    for node in (n for n in nodes if note(n).layer):
        reasons = [frozen[c] for c in nodes[node].flatten().tolist() if c in frozen]
        if reasons:
            share = "" if len(reasons) == nodes[node].numel() else f"{len(reasons)} of {nodes[node].numel()} channels: "
            skipped.append(Skipped(layer_name(node), share + reasons[0]))
    return Classes(groups, nodes, tuple(skipped), len(roots))


def _members(side: list[tuple[str, Tensor]]) -> dict[int, Members]:
    """Who has channels of a class, and which, by class."""
    found: dict[int, dict[str, list[int]]] = defaultdict(dict)
    for name, classes in side:
        for i, c in enumerate(classes.tolist()):
            found[c].setdefault(name, []).append(i)
    return {c: tuple((name, tuple(indices)) for name, indices in names.items()) for c, names in found.items()}


# ---- without them


def _check_not_empty(gone: dict[fx.Node, Tensor]) -> None:
    layers = [n for n in gone if note(n).layer]
    emptied = [layer_name(n) for n in layers if gone[n].all() or gone[operand(n)].all()]
    emptied = emptied or [n.name for n, mask in gone.items() if mask.all()]
    if emptied:
        raise ChannelsError(
            f"{', '.join(emptied)}: no channel would be left, and one is the least; keep a group of these layers"
        )


def _kept(mask: Tensor, shape: tuple[int, ...]) -> list[Bool[Tensor, " n"]]:
    """True = kept, for every index of every dimension."""
    return [mask.movedim(d, 0).reshape(mask.shape[d], -1).any(1).expand(size) for d, size in enumerate(shape)]


def _sliced(value: Tensor, masks: list[Tensor]) -> Tensor:
    for d, mask in enumerate(masks):
        value = value if bool(mask.all()) else value.index_select(d, mask.nonzero().flatten())
    return value.contiguous()


def _shrink_layer(teacher: fx.GraphModule, node: fx.Node, kept: dict[fx.Node, list[Tensor]]) -> None:
    axis = LAYER_TYPES[node.target].channel_axis
    rows, columns = kept[node][axis], kept[operand(node)][axis]
    groups, weight, bias = read_layer(node).groups, weight_node(node), operand(node, 2)
    if groups == len(columns) > 1:
        set_argument(node, "groups", int(columns.sum()))
    columns = columns.reshape(groups, -1).any(0)  # the same in every convolution group
    for parameter, masks in ((weight, [rows, columns]), (bias, [rows])):
        value = _sliced(g.tensor_of(teacher, parameter), masks)
        g.set_tensor(teacher, str(parameter.target), value)
        annotate(parameter, shape=tuple(value.shape))
    set_parameters(node, weight, bias)


def _shrink_arguments(node: fx.Node, kept: dict[fx.Node, list[Tensor]]) -> None:
    """Bring sizes and positions that are written into a call up to date."""
    if follow := FOLLOW.get(operator_of(node).removal):
        follow(node, kept)


def _follow_sizes(node: fx.Node, kept: dict[fx.Node, list[Tensor]]) -> None:
    """view(x, sizes)"""
    if node not in kept:
        return
    args: Any = node.args
    x, sizes, *rest = args
    sizes = [int(k.sum()) if isinstance(s, int) and s > 0 else s for s, k in zip(sizes, kept[node], strict=True)]
    node.args = (x, sizes, *rest)


def _follow_splits(node: fx.Node, kept: dict[fx.Node, list[Tensor]]) -> None:
    """split(x, size, dim)"""
    x, size, dim = operand(node), node.args[1], argument(node, "dim")
    if not bool((mask := kept[x][dim]).all()):
        sizes = [int(part.sum()) for part in g.call(node, mask, size)]
        node.target, node.args = aten.split_with_sizes.default, (x, sizes, dim)


def _follow_slice(node: fx.Node, kept: dict[fx.Node, list[Tensor]]) -> None:
    """slice(x, dim, start, end)"""
    x, dim = operand(node), argument(node, "dim")
    if not bool((mask := kept[x][dim]).all()):
        start, end, _ = slice(argument(node, "start"), argument(node, "end")).indices(len(mask))
        node.args = (x, dim, int(mask[:start].sum()), int(mask[:end].sum()))


def _follow_pads(node: fx.Node, kept: dict[fx.Node, list[Tensor]]) -> None:
    """constant_pad_nd(x, pads, value), pads from the last dimension back"""
    args: Any = node.args
    x, given, *rest = args
    pads = []
    for i, count in enumerate(given):
        mask = kept[node][-1 - i // 2]
        ends = mask[:count] if i % 2 == 0 else mask.flip(0)[:count]
        pads.append(count if bool(mask.all()) else int(ends.sum()))
    node.args = (x, pads, *rest)


FOLLOW = {"sizes": _follow_sizes, "splits": _follow_splits, "slice": _follow_slice, "pads": _follow_pads}
