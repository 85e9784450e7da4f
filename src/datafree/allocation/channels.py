"""Whole channels: which can go for the least harm to the network."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, fx

from datafree import graph as g
from datafree.allocation.sparsity import curve_of_zeros
from datafree.graph import Group, channel_groups, unremovable
from datafree.recipe import Prune
from datafree.records import PruneSpec, Skipped, WeightSpec
from datafree.solve import LayerJob, LayerPlan, NetworkProbe, Plan, Problem, damped, inverse, layer_jobs, output_power

ROUNDS = 10  # of choosing, each for its share of the multiply-adds
DAMPING = 0.01  # of H, as a share of its mean diagonal


class PruneError(ValueError):
    """A share of the multiply-adds that whole channels cannot give."""


def choose_channels(problem: Problem, prune: Prune) -> tuple[Plan, tuple[Group, ...]]:
    """Choose channels until the asked share of the multiply-adds is gone (ours).

    Losing input channel c, taps T, costs a layer that reads it, once its other weights are at their best,

        sum over output channels of w_T ((H^-1)_TT)^-1 w_T^T,   nothing making up for it: w_T H_TT w_T^T,

    as a share of its output's variance, times what such an error does to the network's output. A group of channels
    costs the sum over its readers (geometric mean of both); those that cost least for each multiply-add they save go
    first, in rounds. With `scope: layer` every set of channels loses the same share, those that cost least in it.

    Returns:
        The plan, in which readers know the channels they lose, and layers whose channels stay are listed with the
        reason; and the groups to remove.

    Raises:
        PruneError: no choice of channels saves so much; says what the most is.
    """
    teacher, plan = problem.teacher, problem.plan
    if prune.pattern != "channels" or not prune.sparsity:
        return plan, ()
    kept = {item.name for item in plan.skipped}
    groups = [u for u in channel_groups(teacher) if not kept & {name for name, _ in u.producers + u.consumers}]
    readers = _readers(problem, {name for u in groups for name, _ in u.consumers})
    sizes = sizes_of(teacher)
    removed = _choose(groups, readers, sizes, prune.sparsity, alike=prune.scope == "layer")
    lost: dict[str, list[int]] = {}
    for group in removed:
        for name, columns in group.consumers:
            if sizes[name].groups:  # of a depthwise layer nothing is left to make up for it
                lost.setdefault(name, []).extend(columns)
    items = {n: _without_columns(i, tuple(sorted(lost[n]))) if n in lost else i for n, i in plan.layers.items()}
    stay = tuple(Skipped(s.name, f"output channels stay: {s.reason}") for s in unremovable(teacher))
    return replace(plan, layers=items, skipped=plan.skipped + stay), tuple(removed)


def _without_columns(item: LayerPlan, columns: tuple[int, ...]) -> LayerPlan:
    spec = item.weights or WeightSpec(None)
    return replace(item, weights=replace(spec, prune=PruneSpec(0, "output", 1, columns=columns)))


# ---- what channels cost their readers


@dataclass
class _Reader:
    """A layer that may lose input channels: its weights (g, o, n), H damped, and the worth of its output's error."""

    weight: Float[Tensor, "g o n"]
    h: Float[Tensor, "gb m m"]
    taps: int  # of one input channel
    worth: float
    columns: Bool[Tensor, " ins"]  # input channels still there
    rows: Bool[Tensor, " go"]  # output channels still there

    def costs(self) -> Float[Tensor, " c"]:
        """What the loss of each input channel would add to the network's error."""
        groups, size = self.weight.shape[0], self.h.shape[2]
        there = self.columns.view(-1, 1).expand(-1, self.taps).reshape(-1, size).float()  # (g * b, m)
        masked = self.h * there[:, :, None] * there[:, None, :] + torch.diag_embed(1 - there)
        inverted = inverse(masked)
        wanted = self.weight.unflatten(2, (-1, size)).transpose(1, 2).flatten(0, 1)  # (g * b, o, m)
        x = ((wanted @ self.h) * there[:, None]) @ inverted * there[:, None]
        alive = self.rows.view(groups, 1, -1).expand(-1, len(self.h) // groups, -1).flatten(0, 1)  # (g * b, o)
        x = (x * alive[:, :, None]).unflatten(2, (-1, self.taps))  # (g * b, o, c, k)
        helped = torch.linalg.solve(_own_taps(inverted, self.taps), x.permute(0, 2, 3, 1))  # (g * b, c, k, o)
        helped = (helped * x.permute(0, 2, 3, 1)).sum((2, 3))
        alone = torch.einsum("gock,gckl,gocl->gc", x, _own_taps(self.h, self.taps), x)
        return self.worth * (helped * alone).clamp(min=0).sqrt().flatten() * self.columns


def _own_taps(h: Float[Tensor, "g m m"], taps: int) -> Float[Tensor, "g c k k"]:
    """The blocks of H that belong to one input channel each."""
    channels = h.shape[1] // taps
    return h.view(len(h), channels, taps, channels, taps).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)


def _readers(problem: Problem, names: set[str]) -> dict[str, _Reader]:
    items = {n: replace(i, weights=WeightSpec(None) if n in names else None) for n, i in problem.plan.layers.items()}
    readers, reference = {}, NetworkProbe(problem.teacher, problem.signal)
    for job in layer_jobs(replace(problem, plan=replace(problem.plan, layers=items)), {}, split_halves=True):
        probe = curve_of_zeros(job).probes[0]
        [move] = reference.output_change([probe])
        readers[job.name] = _reader(job, move / max(probe.error, 1e-12))
    return readers


def _reader(job: LayerJob, gain: float) -> _Reader:
    groups, rows, taps = job.weight.shape
    h, power = damped(job.moments.cov, DAMPING).float(), max(output_power(job.weight, job.moments), 1e-30)
    everything = torch.ones(groups * taps // job.kernel_size, dtype=torch.bool)
    return _Reader(
        job.weight, h, job.kernel_size, gain / power, everything, torch.ones(groups * rows, dtype=torch.bool)
    )


# ---- choosing


@dataclass
class _Size:
    """Channels of a layer that are still there, and multiply-adds for each pair of them."""

    outs: int
    ins: int
    groups: int  # 0 = depthwise
    unit: int

    @property
    def macs(self) -> float:
        return self.unit * self.outs * (self.ins / self.groups if self.groups else 1.0)


def sizes_of(teacher: fx.GraphModule) -> dict[str, _Size]:
    nodes, found = g.nodes_by_name(teacher), {}
    for name, layer in g.layers(teacher).items():
        weight = g.weight(teacher, layer)
        ins = weight.shape[1] * layer.groups
        macs = g.num_macs(nodes[layer.node])
        groups = 0 if layer.groups == ins > 1 else layer.groups
        found[name] = _Size(weight.shape[0], ins, groups, macs // (weight.shape[0] * weight.shape[1]))
    return found


def _choose(
    groups: list[Group], readers: dict[str, _Reader], sizes: dict[str, _Size], share: float, *, alike: bool
) -> list[Group]:
    total = sum(size.macs for size in sizes.values())
    removed: list[Group] = []
    left = list(groups)
    widths = Counter(_layers(u) for u in groups)
    for turn in range(1, ROUNDS + 1):
        wanted = total * (1 - share * turn / ROUNDS)
        costs = {name: reader.costs() for name, reader in readers.items()}
        price = {u: _cost(u, costs, sizes) / max(_saved(u, sizes), 1e-9) for u in left}
        for bundle in _bundles(left, price, widths, alike=alike):
            if sum(size.macs for size in sizes.values()) <= wanted:
                break
            if _can_go(bundle, sizes):
                for group in bundle:
                    _take(group, readers, sizes)
                removed += bundle
        gone = set(removed)
        left = [u for u in left if u not in gone]
    rest = sum(size.macs for size in sizes.values()) / total
    if rest > 1 - share + 1e-9:
        raise PruneError(
            f"whole channels can save at most {math.floor(100 * (1 - rest))} % of this network's multiply-adds, "
            f"{100 * share:g} % were asked for; lower prune.sparsity, or raise budget.macs to {round(rest * total)}"
        )
    return removed


def _cost(group: Group, costs: dict[str, Tensor], sizes: dict[str, _Size]) -> float:
    """Summed over readers; a depthwise layer that goes with the channel loses nothing that is wanted."""
    return sum(float(costs[name][list(columns)].sum()) for name, columns in group.consumers if sizes[name].groups)


def _changes(group: Group) -> Iterable[tuple[str, int, int]]:
    """(layer, output channels, input channels) that go with a group."""
    outs, ins = ({name: len(channels) for name, channels in side} for side in (group.producers, group.consumers))
    return [(name, outs.get(name, 0), ins.get(name, 0)) for name in {**outs, **ins}]


def _saved(group: Group, sizes: dict[str, _Size]) -> float:
    return sum(
        sizes[n].macs - replace(sizes[n], outs=sizes[n].outs - outs, ins=sizes[n].ins - ins).macs
        for n, outs, ins in _changes(group)
    )


def _can_go(bundle: Sequence[Group], sizes: dict[str, _Size]) -> bool:
    """Whether no layer is left without channels."""
    num = len(bundle)
    return all(sizes[n].outs > num * outs and sizes[n].ins > num * ins for n, outs, ins in _changes(bundle[0]))


def _layers(group: Group) -> tuple[tuple[str, int, int], ...]:
    """What tells sets of channels apart: the layers they go through."""
    return tuple(_changes(group))


def _at_once(width: int, *, alike: bool) -> int:
    """How many channels of a set go together: 16 of 96 and more, so that whole 16s stay (ours).

    Integer kernels take 16 channels at a time: 70 channels are slower than 96 (bench/tables/export.py). In narrow sets
    so many at once cost accuracy: on resnet20, 16 to 64 wide, an eighth at once lost 1 point more. Where all sets lose
    alike, which is for speed, 8 go of those.
    """
    return 16 if width >= 96 else 8 if alike and width >= 16 else 1


def _bundles(
    left: Iterable[Group], price: dict[Group, float], widths: Mapping[tuple, int], *, alike: bool
) -> list[tuple[Group, ...]]:
    """Channels that go together, cheapest first; of what is left of a set, less than a bundle stays.

    Args:
        widths: of every set before anything went.
        alike: the sets that have lost the least share of their width go first, not those that cost least.
    """
    sets: dict[tuple, list[Group]] = {}
    for group in sorted(left, key=lambda u: price[u]):
        sets.setdefault(_layers(group), []).append(group)
    turns: list[tuple[float, tuple[Group, ...]]] = []
    for key, own in sets.items():
        size = _at_once(widths[key], alike=alike)
        for i in range(0, len(own) - size + 1, size):
            bundle = tuple(own[i : i + size])
            lost = 1 - (len(own) - i - size) / widths[key]
            turns.append((lost if alike else sum(price[u] for u in bundle) / size, bundle))
    return [bundle for _, bundle in sorted(turns, key=lambda turn: turn[0])]


def _take(group: Group, readers: dict[str, _Reader], sizes: dict[str, _Size]) -> None:
    for name, outs, ins in _changes(group):
        sizes[name].outs -= outs
        sizes[name].ins -= ins
    for name, columns in group.consumers:
        readers[name].columns[list(columns)] = False
    for name, channels in group.producers:
        if name in readers:
            readers[name].rows[list(channels)] = False
