"""Layers that lose channels because their input is rounded too coarsely (ours)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from torch import fx

from datafree import graph as g
from datafree.records import CoarseInput, decibel
from datafree.signals import Signal
from datafree.solve.mending import floor_db
from datafree.solve.network_probe import NetworkProbe
from datafree.solve.plan import WIDE, Plan, quantized_at, wide_operands
from datafree.solve.problem import Problem, Solution
from datafree.solve.solve_layer import compress_layer, layer_jobs

FLOAT_INPUT = "its input in float"


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
    probe, found = NetworkProbe(solution.teacher, signal), []
    for name, bits in coarse.items():
        read = quantized_at(g.operand(by_name[plan[name].layer.node]))
        change = probe.rounding_change(name, solution.grids[read.name, bits])
        found.append(CoarseInput(name, bits, solution.layers[name].input_db, decibel(1.0, change)))
    return tuple(found)


def with_float_inputs(problem: Problem, solution: Solution) -> Solution:
    """Solve layers again whose input at 8 bits or more loses what the network's output needs: the input stays in float.

    Below 8 bits nothing is done, for there a wider input helps, and is the recipe's to give.
    """
    found = coarse_inputs(solution, problem.signal)
    names = [c.name for c in found if c.bits >= WIDE and c.output_db < floor_db(c.bits)]
    if not names:
        return solution
    plan = _in_float(problem.teacher, solution.plan, names)
    only = replace(plan, layers={name: plan.layers[name] for name in names}, activation_bits={})
    layers = dict(solution.layers)
    for job in layer_jobs(replace(problem, plan=only), {}):
        new, old = compress_layer(job), layers[job.name]
        remedy = f"{new.remedy}, and {FLOAT_INPUT}" if new.remedy else FLOAT_INPUT
        layers[job.name] = replace(new, remedy=remedy, as_asked_db=min(old.input_db, new.as_asked_db))
    return replace(solution, plan=plan, layers=layers)


def _in_float(teacher: fx.GraphModule, plan: Plan, names: Collection[str]) -> Plan:
    """The plan with these layers' inputs in float, and no grid that nobody reads."""
    by_name = g.nodes_by_name(teacher)
    layers = {n: replace(item, input_bits=None) if n in names else item for n, item in plan.layers.items()}
    read = {(quantized_at(g.operand(by_name[i.layer.node])).name, i.input_bits) for i in layers.values()}
    sums = {quantized_at(node).name for node in wide_operands(teacher)}
    widths = {
        name: tuple(bits for bits in every if (name, bits) in read or (name in sums and bits == max(every)))
        for name, every in plan.activation_bits.items()
    }
    return replace(plan, layers=layers, activation_bits={name: bits for name, bits in widths.items() if bits})
