"""Which channels of which tensors are the same channel: the map that equalization and channel pruning read.

Every tensor carries an array of channel ids that broadcasts to its shape, (1, C, 1, 1) in the usual case. Layers make
new ids, element-wise operators unite the ids of their operands, and operators that move data are *executed on the
ids*, so views, concatenations, shuffles and splits need no case of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from datafree.graph import view as g
from datafree.graph.annotations import layer_name, note, operand, shape
from datafree.graph.layer_types import LAYER_TYPES
from datafree.graph.operators import argument, aten, operator_of


@dataclass(frozen=True)
class LayerSide:
    """One side of one layer: channel c of its input or output belongs to class `classes[c]`."""

    layer: str
    classes: Tensor  # (C,) int64


@dataclass
class ChannelIds:
    """Producers and consumers of every class of channels; `blocked` classes may not be rescaled."""

    producers: list[LayerSide] = field(default_factory=list)
    consumers: list[LayerSide] = field(default_factory=list)
    blocked: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))


def channel_ids(graph: fx.GraphModule, *, homogeneous: bool) -> ChannelIds:
    """Find the classes of channels that are tied together between layers.

    Args:
        graph: a captured graph, BatchNorm folded.
        homogeneous: True = a scale must pass unchanged from producer to consumer, so ReLU6, SiLU, gates, kept
            affine ops, graph inputs and outputs block the classes they touch. False = any element-wise operator,
            pooling and gate keeps a channel the same channel (what AFCLE assumes, which is nothing else).
    """
    return ChannelTracer(graph, homogeneous).result()


class ChannelTracer:
    """Ids of every tensor while the graph is read; union-find over ids."""

    def __init__(self, graph: fx.GraphModule, homogeneous: bool) -> None:
        self.graph, self.homogeneous = graph, homogeneous
        self.parent: list[int] = []
        self.blocked_ids: set[int] = set()
        self.ids: dict[fx.Node, Any] = {}  # a tensor; a list of them, for a split; None
        self.sides: tuple[list[tuple[str, Tensor]], list[tuple[str, Tensor]]] = ([], [])

    def result(self) -> ChannelIds:
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                self.ids[node] = self._fresh(shape(node), blocked=self.homogeneous)
            elif node.op == "call_function":
                self.ids[node] = self._call(node)
        if self.homogeneous:
            for node in g.outputs(self.graph):
                self._block(self.ids.get(node))
        roots = torch.tensor([self._find(i) for i in range(len(self.parent))])
        blocked = torch.zeros(len(roots), dtype=torch.bool)
        blocked[[self._find(i) for i in self.blocked_ids]] = True
        producers, consumers = ([LayerSide(name, roots[ids]) for name, ids in side] for side in self.sides)
        return ChannelIds(producers, consumers, blocked)

    # ---- union-find

    def _find(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = self.parent[self.parent[i]]
            i = self.parent[i]
        return i

    def _unite(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = torch.broadcast_tensors(a, b)
        for i, j in {*zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)}:
            self.parent[self._find(i)] = self._find(j)
        return b.clone()

    def _fresh(self, shape: tuple[int, ...], *, blocked: bool, dim: int | None = None) -> Tensor:
        """New ids along the channel dimension; where nothing says which, 1 for images, the last for anything else."""
        dim = (1 if len(shape) == 4 else len(shape) - 1) if dim is None else dim % len(shape)
        count = shape[dim] if shape else 1
        ids = torch.arange(len(self.parent), len(self.parent) + count)
        self.parent.extend(ids.tolist())
        if blocked:
            self.blocked_ids.update(ids.tolist())
        return ids.view([-1 if d == dim else 1 for d in range(len(shape))])

    def _block(self, ids: object) -> None:
        if isinstance(ids, Tensor):
            self.blocked_ids.update(ids.flatten().tolist())
        elif isinstance(ids, list | tuple):
            for part in ids:
                self._block(part)

    def _is_blocked(self, ids: Tensor) -> bool:
        roots = {self._find(i) for i in self.blocked_ids}
        return all(self._find(i) in roots for i in ids.flatten().tolist())

    # ---- operators

    def _call(self, node: fx.Node) -> Any:
        if note(node).layer:
            return self._layer(node)
        if note(node).size is not None:
            return None  # a symbolic integer
        operands = [self.ids[n] for n in node.all_input_nodes if isinstance(self.ids.get(n), Tensor)]
        row, first = operator_of(node), self.ids.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
        if row.channels in ("moves", "joins"):
            return self._move(node)
        if row.channels == "pads" and isinstance(first, Tensor):
            return self._pad(node, first)
        if len(operands) == 1 and (isinstance(first, Tensor) or row.channels in ("unites", "gates")):
            squares = len(node.args) > 1 and node.args[0] is node.args[1]  # x * x is one operand, read twice
            stays = (row.homogeneous and not squares) or (not self.homogeneous and row.channels != "mixes")
            if stays and not (self.homogeneous and note(node).affine is not None):
                return self._keep(node, operands[0])
        elif len(operands) == 2 and row.channels == "unites":
            return self._unite(*operands)
        elif len(operands) == 2 and row.channels == "gates":
            return self._gate(*operands)
        return self._unknown(node, operands)

    def _keep(self, node: fx.Node, ids: Tensor) -> object:
        rank = len(shape(node))
        if ids.dim() == rank:
            return (
                ids
                if all(s == 1 or s == t for s, t in zip(ids.shape, shape(node), strict=True))
                else self._unknown(node, [ids])
            )
        if operator_of(node).reduces and ids.numel() == ids.shape[1]:
            dims = {d % ids.dim() for d in argument(node, "dim")}
            return ids.flatten().view(1, -1, *[1] * (rank - 2)) if 1 not in dims else self._unknown(node, [ids])
        return self._unknown(node, [ids])

    def _gate(self, a: Tensor, b: Tensor) -> Tensor:
        """x * gate: one scale passes where the other side is fixed; assumption-free, both are the same channel."""
        if not self.homogeneous:
            return self._unite(a, b)
        if self._is_blocked(b):
            return torch.broadcast_tensors(a, b)[0].clone()
        if self._is_blocked(a):
            return torch.broadcast_tensors(a, b)[1].clone()
        self._block(a)
        self._block(b)
        return torch.broadcast_tensors(a, b)[0].clone()

    def _layer(self, node: fx.Node) -> Tensor:
        name, source = layer_name(node), self.ids.get(operand(node))
        axis = LAYER_TYPES[node.target].channel_axis
        channels = shape(operand(node))[axis]
        if isinstance(source, Tensor) and source.numel() == channels == source.shape[axis]:
            self.sides[1].append((name, source.flatten()))
        else:
            self._block(source)
        new = self._fresh(shape(node), blocked=False, dim=axis)
        self.sides[0].append((name, new.flatten()))
        return new

    def _pad(self, node: fx.Node, ids: Tensor) -> object:
        """Zeros may take any scale: along channels they get ids of their own, elsewhere they change nothing."""
        pads, value = argument(node, "pad"), argument(node, "value")
        if value and self.homogeneous:
            return self._unknown(node, [ids])
        before = {ids.dim() - 1 - i // 2: (pads[i], pads[i + 1]) for i in range(0, len(pads), 2)}
        for dim, (left, right) in before.items():
            if ids.shape[dim] == 1 or not (left or right):
                continue
            if ids.numel() != ids.shape[dim] or left < 0 or right < 0:
                return self._unknown(node, [ids])
            extra = self._fresh((left + right,), blocked=False)
            ids = torch.cat([extra[:left], ids.flatten(), extra[left:]]).view(
                [-1 if d == dim else 1 for d in range(ids.dim())]
            )
        return ids

    def _move(self, node: fx.Node) -> object:
        full = {n: self._expanded(n) for n in node.all_input_nodes}
        if any(v is None for v in full.values()):
            return self._unknown(node, [v for v in full.values() if isinstance(v, Tensor)])
        if node.target is aten.view.default:  # of ids that are expanded there is none
            full[operand(node)] = full[operand(node)].contiguous()
        moved = g.execute(node, full)
        return _compact(moved) if isinstance(moved, Tensor) else [_compact(m) for m in moved]

    def _expanded(self, node: fx.Node) -> Any:
        ids = self.ids.get(node)
        if ids is None:
            return note(node).size  # a symbolic integer, for a batch of two
        if isinstance(ids, list):
            return ids
        assert isinstance(ids, Tensor)
        return ids.expand(shape(node)) if shape(node) else ids

    def _unknown(self, node: fx.Node, operands: list[Tensor]) -> object:
        for ids in operands:
            self._block(ids)
        return self._fresh(shape(node), blocked=True) if shape(node) else None


def _compact(ids: Tensor) -> Tensor:
    for dim in range(ids.dim()):
        if ids.shape[dim] > 1 and bool((ids == ids.narrow(dim, 0, 1)).all()):
            ids = ids.narrow(dim, 0, 1)
    return ids.contiguous()
