"""What the layers are solved from, all of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from datafree.recipe import RoundingRecipe
from datafree.records import LayerResult, QParams
from datafree.signals import Signal
from datafree.solve.plan import Plan

Grids = dict[tuple[str, int], QParams]
"""The integer grid of a tensor by (node name, bits)."""


@dataclass(frozen=True)
class Problem:
    """A network to compress.

    teacher: folded, equalized.
    plan: what becomes of every layer and tensor.
    signal: where the layers' inputs come from.
    method: how weights are rounded, and in which order layers are solved.
    """

    teacher: fx.GraphModule
    plan: Plan
    signal: Signal
    method: RoundingRecipe


@dataclass(frozen=True)
class Solution:
    """Solved layers by name, the grids of all quantized tensors, and the float graph they belong into.

    Layers that are not in `layers` stay as they are. `teacher` is without the channels that were removed.
    """

    teacher: fx.GraphModule
    plan: Plan
    layers: dict[str, LayerResult]
    grids: Grids
