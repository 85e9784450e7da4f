"""Layers that lose channels because their input is rounded too coarsely (ours)."""

from __future__ import annotations

from datafree import graph as g
from datafree.records import CoarseInput, decibel
from datafree.signals import Signal
from datafree.solve.mending import floor_db
from datafree.solve.network_probe import NetworkProbe
from datafree.solve.plan import quantized_at
from datafree.solve.problem import Solution

HELD = 2**29  # bytes of the network's values that are there to measure it


def coarse_inputs(solution: Solution, signal: Signal) -> tuple[CoarseInput, ...]:
    """Layers below their floor, with what rounding their input does to the network's output."""
    plan, by_name = solution.plan.layers, g.nodes_by_name(solution.teacher)
    coarse = {
        name: bits
        for name, layer in solution.layers.items()
        if (bits := plan[name].input_bits) and layer.input_db < floor_db(bits)
    }
    if not coarse:
        return ()
    probe, found = NetworkProbe(solution.teacher, signal, most=HELD), []
    for name, bits in coarse.items():
        read = quantized_at(g.operand(by_name[plan[name].layer.node]))
        change = probe.rounding_change(name, solution.grids[read.name, bits])
        found.append(CoarseInput(name, bits, solution.layers[name].input_db, decibel(1.0, change)))
    return tuple(found)
