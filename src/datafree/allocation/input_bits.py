"""Bits of every layer's input, to choose from: what rounding it does to the network's output, and what it costs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from datafree import graph as g
from datafree.recipe import Recipe
from datafree.solve import LayerPlan, NetworkProbe, Problem, quantized_at, tensor_grid

WIDTHS = (4, 5, 6, 8)


@dataclass(frozen=True)
class InputOption:
    """One width of a layer's input: `error` is what it does to the network's output, as a share of its variance."""

    bits: int
    error: float


def input_options(problem: Problem, recipe: Recipe, ruled: Collection[str]) -> dict[str, list[InputOption]]:
    """The widths that each layer's input may have, of layers whose inputs are rounded (ours).

    Each input is rounded alone, at every width, and the change is followed to the network's output. Layers with a rule,
    and the first and the last one where they keep 8 bits, have one option.

    Args:
        ruled: layers that the user has said something about.
    """
    teacher, signal, target = problem.teacher, problem.signal, recipe.runtime
    probe, by_name, found = NetworkProbe(teacher, signal), g.nodes_by_name(teacher), {}
    for name, item in problem.plan.layers.items():
        if item.input_bits is None:
            continue
        read_here = g.operand(by_name[item.layer.node])
        read, widths = quantized_at(read_here), _widths(item, recipe, is_fixed=name in ruled)
        readers = (item.layer,) if read is read_here else ()
        grids = [
            tensor_grid(teacher, read, probe.values[read], bits, signal, readers=readers, target=target)
            for bits in widths
        ]
        changes = [probe.rounding_change(name, grid) for grid in grids]
        found[name] = [InputOption(bits, change) for bits, change in zip(widths, changes, strict=True)]
    return found


def _widths(item: LayerPlan, recipe: Recipe, *, is_fixed: bool) -> list[int]:
    if is_fixed or item.input_bits != recipe.activations.bits:  # a layer at the end of the network
        assert item.input_bits is not None, "only inputs that are rounded have a width"
        return [item.input_bits]
    return [bits for bits in WIDTHS if bits in recipe.runtime.activation_bits]
