"""What layers put out on the images of a signal, for a network of which no BatchNorm is known."""

from __future__ import annotations

import torch
from torch import fx

from datafree import graph as g
from datafree.records import ChannelStats, Stats
from datafree.signals.source import Signal, batch_statistics, walk_teacher

MARGIN = 2.0  # images here are not those of training, and a stretched channel that reaches further is clipped (ours)


def measured_stats(teacher: fx.GraphModule, signal: Signal) -> Stats:
    """Mean and, twice as large as it is, standard deviation of every channel that leaves a layer, by node name (ours).

    They stand for what BatchNorm would remember where ranges are equalized. Draws, which are made from statistics,
    tell none.
    """
    if signal.draws:
        return {}
    found = {}
    with torch.no_grad():
        for node, x in walk_teacher(teacher, signal):
            if g.note(node).layer and x.dim() > 1:
                mean, std = batch_statistics(x if g.has_rows_in_dimension_1(node) else x.flatten(0, -2))
                found[node.name] = ChannelStats(mean, MARGIN * std)
    return found
