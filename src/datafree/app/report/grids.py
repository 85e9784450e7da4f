"""The integer grids that a student's layers read."""

from __future__ import annotations

from typing import cast

import torch
from torch import fx

from datafree import graph as g
from datafree.records import QParams
from datafree.student import DEQUANTIZE


def input_grids(student: fx.GraphModule) -> dict[str, QParams]:
    """The grid of each layer's input, by the layer's name; those that read float are left out."""
    found = {}
    for node in student.graph.nodes:
        if g.note(node).layer and (read := g.operand(node)).target is DEQUANTIZE:
            scale, zero_point, qmin, qmax = cast(tuple[float, int, int, int], read.args[1:5])
            numbers = torch.tensor([scale], dtype=torch.float32), torch.tensor([zero_point], dtype=torch.int32)
            found[g.layer_name(node)] = QParams(*numbers, qmin, qmax)
    return found


def real_range(grid: QParams) -> tuple[float, float]:
    """Smallest and largest value that a grid holds."""
    low, high = ((end - grid.zero_point) * grid.scale for end in (grid.qmin, grid.qmax))
    return float(low), float(high)
