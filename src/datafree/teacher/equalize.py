"""Assumption-free cross-layer equalization (AFCLE, the paper): move ranges between layers, keep every function.

A layer computes L(x) = v_o (W (v_i x) + b). For a channel that leaves producer W2 and enters consumer W1, with r(.)
the largest absolute weight of the channel (r is ours; the paper's text is not available to us):

    s = sqrt(r(W1[:, c]) / r(W2[c, :])),   W2[c, :] *= s, b2[c] *= s, v2_o[c] /= s,   W1[:, c] /= s, v1_i[c] *= s

Where only positively homogeneous operators lie between, v2_o and v1_i cancel and are never written down. A depthwise
layer between two others is solved with both its neighbours at once, by cube roots (DFQ, arXiv 1906.04721, eq. 12).
With one scale for the whole tensor, v_o then brings the rows of a layer to one range, at no more cost. So there r(W2)
is sqrt(mean^2 + std^2) of what the channel puts out, where v2_o and v1_i do not cancel: s shares between the stored
tensor and the columns of W1 what is uneven in both (ours).

In "foldable" the scales of one step are kept, as s or damped to sqrt(s), if that lowers the predicted error of the
layers they touch, the sum of log(E after / E before); else they are dropped (ours). Up to a constant, a layer's
rounding errors make at its consumers' outputs

    E = D^2  sum_c a_c  sum_i p_i,    p = mean^2 + std^2 of BatchNorm,    a_c = sum of W_consumer[:, c]^2

with D the largest weight, c and i outputs and inputs of one group. Of a layer without statistics p is the sum of
W_producer[i, :]^2, as inputs of power 1 would make it. Ratios need no unit that all layers share. Where every row has
a scale of its own, nothing is predicted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, fx

from datafree import graph as g
from datafree.graph import ChannelIds, LayerSide, channel_ids
from datafree.records import ChannelRanges, Equalization, Layer, Stats
from datafree.teacher.equalize_depthwise import balance_depthwise_

DEAD = 1e-3  # of the layer's largest range: such a channel keeps its scale, or its bias would outgrow all others
DAMPINGS = (1.0, 0.5)  # s, sqrt(s); where many layers share a class, the largest of their ranges asks for too much


def equalize_(
    teacher: fx.GraphModule, stats: Stats, *, mode: str, rows: bool = True, guard: bool = True
) -> tuple[Stats, Equalization]:
    """Equalize the layers of `teacher` in place; its function does not change.

    Args:
        teacher: BatchNorm folded.
        stats: statistics by node; those of equalized layers move with the weights.
        mode: "free" = the paper's AFCLE: vectors between all layers; those that do not cancel stay. "between" = only
            vectors that cancel (DFQ's). "rows" = v_o alone: rows of equal range. "foldable" = ours, what costs nothing
            at run time: vectors that cancel and are predicted to help, v_o elsewhere. "depthwise" = only the inputs of
            depthwise layers, where it costs nothing. "off" = nothing.
        rows: whether v_o alone is of use, that is, whether the weights have one scale for the whole tensor.
        guard: whether "foldable" keeps only what lowers the predicted error, where weights share one scale a tensor.

    Returns:
        The statistics, moved; and which layers were changed, and how.
    """
    layers = g.layers(teacher)
    if mode == "off":
        return stats, Equalization(mode, num_layers=len(layers))
    before = channel_ranges(teacher)
    if mode == "depthwise":
        done = balance_depthwise_(teacher, stats)
        return stats, Equalization(mode, depthwise=done, num_layers=len(layers), ranges_before=before)
    scales = _Scales(teacher, layers, stats, guard=guard and rows and mode == "foldable")
    cancelling = channel_ids(teacher, homogeneous=True)
    if mode != "rows":
        scales.balance(cancelling)
    cancelled = scales.fold()
    if mode == "free":
        rest = _only_blocked(channel_ids(teacher, homogeneous=False), cancelling)
        scales.balance(rest, by_outputs=rows)
    if mode == "foldable" and rows:
        scales.balance_rows({p.layer: cancelling.blocked[p.classes] for p in cancelling.producers})
    elif mode == "rows" or (mode == "free" and rows):
        scales.balance_rows({name: torch.tensor(True) for name in layers})
    output_vectors, input_vectors = scales.write_vectors()
    g.tidy(teacher)
    g.collect_garbage(teacher)  # the weights as they were
    dropped = tuple(n for n in layers if scales.gained.get(n) is False)
    done = Equalization(mode, cancelled, output_vectors, input_vectors, len(layers), (), dropped, before)
    return scales.move(stats), done


def channel_ranges(teacher: fx.GraphModule) -> tuple[ChannelRanges, ...]:
    """How far the ranges of each layer's output channels lie apart."""
    ranges = {name: row_range(g.weight(teacher, layer)) for name, layer in g.layers(teacher).items()}
    return tuple(ChannelRanges(n, float(r.min()), float(r.median()), float(r.max())) for n, r in ranges.items())


def row_range(weight: Tensor) -> Float[Tensor, " c"]:
    """Largest absolute weight of every output channel (C_out,)."""
    return weight.abs().flatten(1).amax(1)


def column_range(weight: Tensor, groups: int) -> Float[Tensor, " c"]:
    """Largest absolute weight of every input channel (C_in,)."""
    rows = weight.abs().reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return rows.amax((1, 3)).flatten()


def column_power(weight: Tensor, groups: int) -> Float[Tensor, " c"]:
    """Sum of squared weights of every input channel (C_in,)."""
    rows = weight.square().reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return rows.sum((1, 3)).flatten()


def _by_layer(
    ids: ChannelIds, given: list[LayerSide], values: dict[str, Tensor], wanted: list[LayerSide]
) -> dict[str, Tensor]:
    """Values of some layers, summed over each class, as layers on the other side see them; 1 where there are none."""
    total = torch.zeros(len(ids.blocked) + 1)  # the last entry serves class -1
    for side in given:
        total.scatter_add_(0, side.classes % len(total), values[side.layer])
    total[-1] = 1
    total = torch.where(total > 0, total, 1.0)
    return {p.layer: total[p.classes] for p in wanted}


def _only_blocked(free: ChannelIds, cancelling: ChannelIds) -> ChannelIds:
    """The free classes, without the channels that have been equalized at no cost already (class -1)."""

    def keep(sides: list[LayerSide], twins: list[LayerSide]) -> list[LayerSide]:
        blocked = {t.layer: cancelling.blocked[t.classes] for t in twins}
        return [
            replace(p, classes=torch.where(blocked[p.layer], p.classes, -1)) if p.layer in blocked else p for p in sides
        ]

    return ChannelIds(
        keep(free.producers, cancelling.producers), keep(free.consumers, cancelling.consumers), free.blocked
    )


class _Scales:
    """The weights being equalized, and the vectors v_o, v_i that keep every layer's function."""

    def __init__(self, teacher: fx.GraphModule, layers: dict[str, Layer], stats: Stats, *, guard: bool) -> None:
        self.teacher, self.layers, self.guard = teacher, layers, guard
        self.gained: dict[str, bool] = {}  # by producer: were any of its scales kept?
        self.weights = {n: g.weight(teacher, layer).clone() for n, layer in layers.items()}
        self.squares: dict[str, tuple[Tensor, Tensor]] = {}  # weights, and what `column_power` says of them
        self.out = {n: torch.ones(w.shape[0]) for n, w in self.weights.items()}  # rows were multiplied by this
        self.inp = {n: torch.ones(w.shape[1] * layers[n].groups) for n, w in self.weights.items()}  # columns divided
        self.total_out = {n: torch.ones_like(v) for n, v in self.out.items()}
        known = {n: stats.get(layer.node) for n, layer in layers.items()}
        self.power = {
            n: self.weights[n].square().flatten(1).sum(1) if s is None else s.mean**2 + s.std**2
            for n, s in known.items()
        }

    # ---- choosing scales

    def balance(self, ids: ChannelIds, *, by_outputs: bool = False) -> None:
        """One sweep in execution order over all classes that have a producer and a consumer.

        Args:
            by_outputs: a producer's range is that of what it puts out, not of its weights, whose rows v_o evens anyway.
        """
        free = torch.ones(len(ids.blocked) + 1)  # the last entry serves class -1
        free[:-1][ids.blocked] = 0
        free[-1] = 0
        done = torch.zeros_like(free, dtype=torch.bool)
        consumers = {p.layer: p for p in ids.consumers}
        for side in ids.producers:
            todo = torch.zeros_like(done)
            todo[side.classes] = True
            todo &= ~done & (free > 0)
            if not todo.any():
                continue
            after = None if by_outputs else self._depthwise_after(todo, ids)
            if after is not None:
                self._triple(ids, todo, after, consumers)
                done[after.classes] = True
            else:
                self._scale_if_better(ids, self._pair(ids, todo, self._outputs if by_outputs else self._rows))
            done |= todo

    def _ranges(self, sides: list[LayerSide], size: int, of: dict[str, Tensor]) -> Tensor:
        """Largest range of each class over all sides (size,); dead channels and absent classes are 0."""
        best = torch.zeros(size)
        for side in sides:
            r = of[side.layer]
            r = torch.where(r > DEAD * r.max(), r, 0.0)
            best.scatter_reduce_(0, side.classes % size, r, "amax")
        return best

    def _rows(self, sides: list[LayerSide], todo: Tensor) -> dict[str, Tensor]:
        return {p.layer: row_range(self.weights[p.layer]) for p in sides if bool(todo[p.classes].any())}

    def _outputs(self, sides: list[LayerSide], todo: Tensor) -> dict[str, Tensor]:
        """Root of the power of every output channel, in today's units."""
        names = {p.layer for p in sides if bool(todo[p.classes].any())}
        return {n: self.power[n].sqrt() * self.total_out[n] * self.out[n] for n in names}

    def _columns(self, sides: list[LayerSide], todo: Tensor) -> dict[str, Tensor]:
        names = {p.layer for p in sides if bool(todo[p.classes].any())}
        return {n: column_range(self.weights[n], self.layers[n].groups) for n in names}

    def _side(self, sides: list[LayerSide], todo: Tensor, ranges: dict[str, Tensor]) -> Tensor:
        return self._ranges([p for p in sides if p.layer in ranges], len(todo), ranges)

    def _pair(
        self, ids: ChannelIds, todo: Tensor, range_of: Callable[[list[LayerSide], Tensor], dict[str, Tensor]]
    ) -> Tensor:
        """s = sqrt(r(W1) / r(W2)) for the classes to do, 1 elsewhere."""
        made = self._side(ids.producers, todo, range_of(ids.producers, todo))
        used = self._side(ids.consumers, todo, self._columns(ids.consumers, todo))
        alive = todo & (made > 0) & (used > 0)
        return torch.where(alive, torch.sqrt(used / made.clamp(min=1e-30)), 1.0)

    def _depthwise_after(self, todo: Tensor, ids: ChannelIds) -> LayerSide | None:
        """The depthwise layer that alone reads the classes to do, if its own output may be scaled too."""
        readers = [p for p in ids.consumers if bool(todo[p.classes].any())]
        if len(readers) != 1 or not bool(todo[readers[0].classes].all()):
            return None
        layer = self.layers[readers[0].layer]
        if layer.groups == 1 or layer.groups != len(readers[0].classes) or layer.groups != len(self.out[layer.name]):
            return None
        side = next((p for p in ids.producers if p.layer == layer.name), None)
        if side is None or bool((side.classes < 0).any()) or bool(ids.blocked[side.classes].any()):
            return None
        others = [p for p in ids.producers if p is not side and bool(torch.isin(p.classes, side.classes).any())]
        read = any(bool(torch.isin(p.classes, side.classes).any()) for p in ids.consumers)
        return side if read and not others else None

    def _triple(self, ids: ChannelIds, todo: Tensor, side: LayerSide, consumers: dict[str, LayerSide]) -> None:
        """Conv, depthwise, conv: r1 s_in = r2 s_out / s_in = r3 / s_out, all equal to cbrt(r1 r2 r3)."""
        after = torch.zeros_like(todo)
        after[side.classes] = True
        entry = consumers[side.layer].classes
        made = self._side(ids.producers, todo, self._rows(ids.producers, todo))[entry]
        used = self._side(ids.consumers, after, self._columns(ids.consumers, after))[side.classes]
        own = row_range(self.weights[side.layer])
        alive = (made > 0) & (used > 0) & (own > DEAD * own.max())
        level = torch.where(alive, (made * own * used).clamp(min=1e-30) ** (1 / 3), 1.0)
        scale = torch.ones(len(todo))
        scale[entry] = torch.where(alive, level / made.clamp(min=1e-30), 1.0)
        scale[side.classes] = torch.where(alive, used / level, 1.0)
        self._scale_if_better(ids, scale)

    def balance_rows(self, where: dict[str, Tensor]) -> None:
        """v_o alone: bring the rows that no consumer balances to one range, the layer's largest (ours).

        No guard is needed: D stays, and the error of every stretched row is divided by s > 1.
        """
        for name, blocked in where.items():
            r = row_range(self.weights[name])
            alive = blocked & (r > DEAD * r.max())
            self._scale_rows(name, torch.where(alive, r.max() / r.clamp(min=1e-30), 1.0))

    # ---- keeping what helps

    def _scale_if_better(self, ids: ChannelIds, scale: Tensor) -> None:
        """Scale by s or by sqrt(s), whichever is predicted to be better; by neither where nothing is gained."""
        if not self.guard:
            return self._scale(ids, scale)
        producers, consumers = (
            [p.layer for p in side if bool((scale[p.classes[p.classes >= 0]] != 1).any())]
            for side in (ids.producers, ids.consumers)
        )
        touched = list(dict.fromkeys(producers + consumers))
        start = kept = self.weights, self.out, self.inp
        before, least = self._errors(ids, touched), 0.0
        for damping in DAMPINGS:
            self.weights, self.out, self.inp = (dict(values) for values in start)
            self._scale(ids, scale**damping)
            error = float((self._errors(ids, touched) / before).log().sum())
            if error < least:
                least, kept = error, (self.weights, self.out, self.inp)
        self.weights, self.out, self.inp = kept
        self.gained.update({n: self.gained.get(n, False) or kept is not start for n in producers})

    def _errors(self, ids: ChannelIds, names: list[str]) -> Float[Tensor, " layers"]:
        """E of these layers, at the weights as they are now."""
        power = {n: p * (self.total_out[n] * self.out[n]) ** 2 for n, p in self.power.items()}
        squares = {n: self._column_power(n) for n in self.weights}
        arriving = _by_layer(ids, ids.producers, power, ids.consumers)
        asked = _by_layer(ids, ids.consumers, squares, ids.producers)
        found = []
        for name in names:
            weight, groups = self.weights[name], self.layers[name].groups
            made = asked.get(name, torch.ones(weight.shape[0])).view(groups, -1).sum(1)
            used = arriving.get(name, torch.ones(groups)).view(groups, -1).sum(1)
            found.append(weight.abs().max().square() * (made * used).sum())
        return torch.stack(found) if found else torch.zeros(0)

    def _column_power(self, name: str) -> Float[Tensor, " c"]:
        """`column_power` of a layer, worked out once while its weights stay: each step changes few of many layers."""
        weight, known = self.weights[name], self.squares.get(name)
        if known is None or known[0] is not weight:
            known = self.squares[name] = weight, column_power(weight, self.layers[name].groups)
        return known[1]

    # ---- applying them

    def _scale(self, ids: ChannelIds, scale: Tensor) -> None:
        for side in ids.producers:
            self._scale_rows(side.layer, torch.where(side.classes >= 0, scale[side.classes], 1.0))
        for side in ids.consumers:
            s = torch.where(side.classes >= 0, scale[side.classes], 1.0)
            if not bool((s == 1).all()):
                weight, groups = self.weights[side.layer], self.layers[side.layer].groups
                rows = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
                self.weights[side.layer] = (rows / s.view(groups, 1, -1, 1)).reshape(weight.shape)
                self.inp[side.layer] = self.inp[side.layer] * s

    def _scale_rows(self, name: str, s: Tensor) -> None:
        if not bool((s == 1).all()):
            weight = self.weights[name]
            self.weights[name] = weight * s.view(-1, *[1] * (weight.dim() - 1))
            self.out[name] = self.out[name] * s

    def fold(self) -> tuple[str, ...]:
        """Forget the vectors gathered so far: they cancel between the layers."""
        changed = tuple(n for n in self.layers if bool((self.out[n] != 1).any() or (self.inp[n] != 1).any()))
        for name in changed:
            self.total_out[name] = self.total_out[name] * self.out[name]
        self.out = {n: torch.ones_like(v) for n, v in self.out.items()}
        self.inp = {n: torch.ones_like(v) for n, v in self.inp.items()}
        return changed

    def write_vectors(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Store the weights; put v_o = 1 / out behind and v_i = inp before the layers where they are not all ones."""
        by_name = g.nodes_by_name(self.teacher)
        output_vectors, input_vectors = [], []
        for name, layer in self.layers.items():
            node, along = by_name[layer.node], g.type_of(layer).along_channels
            self.total_out[name] = self.total_out[name] * self.out[name]
            g.set_tensor(self.teacher, f"{name}.weight", self.weights[name])
            g.set_tensor(self.teacher, f"{name}.bias", g.bias(self.teacher, layer) * self.total_out[name])
            if bool((self.out[name] != 1).any()):
                new = g.scale_output(self.teacher, node, f"{name}.v_o", 1 / along(self.out[name]))
                g.annotate(new, v_o=name)
                output_vectors.append(name)
            if bool((self.inp[name] != 1).any()):
                g.scale_input(self.teacher, node, f"{name}.v_i", along(self.inp[name]))
                input_vectors.append(name)
        return tuple(output_vectors), tuple(input_vectors)

    def move(self, stats: Stats) -> Stats:
        """Statistics of the layers' outputs in their new units."""
        scale = {layer.node: self.total_out[name] for name, layer in self.layers.items()}
        return {n: s.scaled(scale[n]) if n in scale else s for n, s in stats.items()}
