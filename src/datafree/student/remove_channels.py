"""A smaller network: the channels that go are taken out of the graph and of the solved layers."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from datafree import graph as g
from datafree.graph import Group, remove_
from datafree.records import LayerResult
from datafree.solve import Solution


def remove_channels(solution: Solution, groups: tuple[Group, ...]) -> Solution:
    """The solution without these channels; nothing of it is touched."""
    if not groups:
        return solution
    results = solution.layers
    smaller = g.with_weights(solution.teacher, {n: r.weight.float() for n, r in results.items()})
    for name, result in results.items():
        g.set_tensor(smaller, f"{name}.bias", result.bias)
    remove_(smaller, groups)
    rows: dict[str, list[int]] = {}
    for group in groups:
        for name, channels in group.producers:
            rows.setdefault(name, []).extend(channels)
    layers = {n: _smaller(r, smaller, rows.get(n, [])) for n, r in results.items()}
    return replace(solution, teacher=smaller, layers=layers)


def _smaller(result: LayerResult, smaller: fx.GraphModule, gone: list[int]) -> LayerResult:
    grid, weight = result.weight_qparams, g.get_tensor(smaller, f"{result.name}.weight").flatten(1)
    if grid is not None and len(grid.scale) > 1:
        stays = torch.ones(len(grid.scale), dtype=torch.bool).index_fill_(
            0, torch.tensor(gone, dtype=torch.long), False
        )
        grid = replace(grid, scale=grid.scale[stays], zero_point=grid.zero_point[stays])
    bias = g.get_tensor(smaller, f"{result.name}.bias")
    return replace(result, weight=weight.to(result.weight.dtype), bias=bias, weight_qparams=grid, sparsity=0.0)
