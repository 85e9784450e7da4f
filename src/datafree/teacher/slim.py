"""What does nothing goes first: channels that never change, and those that nobody reads. No data, no loss (ours)."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import permutations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, fx

from datafree import graph as g
from datafree.graph import Group, channel_groups, described, remove_, summands
from datafree.records import ChannelStats, Layer, Slimmed, Stats
from datafree.teacher.constants import Constants, find_constants, still_channels

WORTHWHILE = 0.1  # of the parameters; for less, "auto" leaves widths alone: integer kernels like them in 16s


def slim(teacher: fx.GraphModule, stats: Stats, *, mode: str) -> tuple[fx.GraphModule, Stats, Slimmed]:
    """The network without what does nothing: the same function, smaller and dense.

    A channel is constant where BatchNorm remembers no deviation, where its weights are zero, or where all that it is
    made of is constant. Its value v goes into the biases of the layers that read it,

        b[o] += v sum over taps of W[o, c],

    unless it meets the zeros of a padding and is not zero itself: then it stays. So does one channel of every layer.
    A branch that adds zero to a sum goes as a whole.

    Args:
        teacher: BatchNorm folded, not equalized; it is not changed.
        stats: statistics by node.
        mode: "on"; "auto" = only where at least a tenth of the parameters goes; "off".

    Returns:
        The network, its statistics, and what went.
    """
    if mode == "off":
        return teacher, stats, Slimmed()
    smaller, left, removed = g.duplicate(teacher), stats, []
    still = still_channels(teacher, stats)
    while True:
        constants = find_constants(smaller, left, still)
        dropped = _drop_zeros_(smaller, constants)
        groups = [] if dropped else _idle(smaller, constants)
        if not (dropped or groups):
            break
        removed += [*dropped, *described(groups)]
        there = _remove_(smaller, groups, constants)
        left = {name: _of_channels(s, there[name]) for name, s in left.items() if name in there}
        still = {name: s[there[name]] for name, s in still.items() if name in there}
    (size, macs), (new_size, new_macs) = _size(teacher), _size(smaller)
    gone = Slimmed(tuple(removed), size - new_size, macs - new_macs)
    return (smaller, left, gone) if is_left_out(gone, size, mode) else (teacher, stats, Slimmed())


def is_left_out(gone: Slimmed, num_parameters: int, mode: str) -> bool:
    """Whether a mode leaves out what does nothing, of so many parameters."""
    enough = mode == "on" or (mode == "auto" and gone.parameters >= WORTHWHILE * num_parameters)
    return bool(gone.removed) and enough


def _size(teacher: fx.GraphModule) -> tuple[int, int]:
    """Parameters and multiply-adds of all layers."""
    return g.num_parameters(teacher), sum(g.num_macs(n) for n in teacher.graph.nodes if g.note(n).layer)


def _drop_zeros_(teacher: fx.GraphModule, constants: Constants) -> list[str]:
    """Put x in place of x + 0."""
    dropped = []
    for node in teacher.graph.nodes:
        for zero, other in permutations(summands(node), 2):
            if zero in constants.zeros and g.shape(other) == g.shape(node):
                node.replace_all_uses_with(other)
                dropped.append(f"{zero.name}, which adds nothing")
                break
    g.tidy(teacher)
    return dropped


def _idle(teacher: fx.GraphModule, constants: Constants) -> list[Group]:
    """Groups whose channels are the same constants at every reader, or read with zero weights; never all of a layer."""
    layers = g.layers(teacher)
    harmless = {name: _harmless(teacher, layer, constants.inputs[name]) for name, layer in layers.items()}
    left = Counter({(name, "in"): len(columns) for name, columns in harmless.items()})
    left.update({(name, "out"): len(g.bias(teacher, layer)) for name, layer in layers.items()})
    idle = []
    for group in channel_groups(teacher):
        rows = dict(group.producers)
        readers = [
            (name, columns)
            for name, columns in group.consumers
            if not _goes_too(layers[name], len(harmless[name]), rows.get(name, ()))
        ]
        goes = Counter({(name, "in"): len(columns) for name, columns in group.consumers})
        goes.update({(name, "out"): len(channels) for name, channels in group.producers})
        if all(bool(harmless[name][list(c)].all()) for name, c in readers) and all(left[k] > goes[k] for k in goes):
            idle.append(group)
            left -= goes
    return idle


def _harmless(teacher: fx.GraphModule, layer: Layer, values: Float[Tensor, " c"]) -> Bool[Tensor, " c"]:
    """Input channels that a bias can stand for."""
    constant = values == 0 if g.meets_borders(g.node_of(teacher, layer.node)) else ~values.isnan()
    weights = g.grouped(g.weight(teacher, layer), layer.groups)  # (g, o, n)
    unread = (weights == 0).unflatten(2, (-1, layer.kernel_size)).all(3).all(1).flatten()
    return constant | unread


def _goes_too(layer: Layer, num_columns: int, rows: tuple[int, ...]) -> bool:
    """Whether all that a layer makes of these input channels goes with them: it is depthwise."""
    return layer.groups == num_columns > 1 and bool(rows)


def _remove_(teacher: fx.GraphModule, groups: list[Group], constants: Constants) -> dict[str, Bool[Tensor, " c"]]:
    """Let biases stand for the channels, then remove them. Says which are still there, by node."""
    columns: dict[str, list[int]] = defaultdict(list)
    for group in groups:
        for name, own in group.consumers:
            columns[name].extend(own)
    layers = g.layers(teacher)
    for name, own in columns.items():
        layer, values = layers[name], torch.zeros_like(constants.inputs[name])
        values[own] = constants.inputs[name][own].nan_to_num(0)
        weights = g.grouped(g.weight(teacher, layer), layer.groups)
        taps = values.view(layer.groups, -1).repeat_interleave(layer.kernel_size, 1)
        shift = torch.einsum("gon,gn->go", weights.double(), taps.double()).flatten().float()
        g.set_tensor(teacher, f"{name}.bias", g.bias(teacher, layer) + shift)
    return remove_(teacher, groups)


def _of_channels(stats: ChannelStats, channels: Bool[Tensor, " c"]) -> ChannelStats:
    """Statistics of the channels that are still there."""
    gain = None if stats.gain is None else stats.gain[channels]
    return ChannelStats(stats.mean[channels], stats.std[channels], gain)
