"""What a network costs: bytes, multiply-adds and bit operations."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from datafree import graph as g
from datafree.quantization import stored_size
from datafree.records import Layer, LayerResult, Slimmed
from datafree.solve import Plan, Solution


@dataclass(frozen=True)
class Cost:
    """The fields of a summary that count, of the student and of the teacher."""

    bytes: int
    float_bytes: int
    macs: int
    float_macs: int
    spent_macs: int
    forward_equivalents: float
    bit_operations: int
    float_bit_operations: int
    num_layers: int
    num_quantized: int
    sparsity: float


def costs(teacher: fx.GraphModule, solution: Solution, *, slimmed: Slimmed, spent: int) -> Cost:
    """Count bytes, multiply-adds and bit operations.

    Args:
        teacher: with all its channels but those that do nothing.
        slimmed: these; the float network had them.
        spent: multiply-adds of the compression itself.
    """
    plan, smaller, results = solution.plan, solution.teacher, solution.layers
    macs, float_macs = g.layer_macs(smaller), sum(g.layer_macs(teacher).values()) + slimmed.macs
    weights = {n: r.weight.numel() for n, r in results.items()}
    return Cost(
        bytes=num_bytes(plan, smaller, results),
        float_bytes=num_bytes(plan, teacher, {}) + 4 * slimmed.parameters,
        macs=sum(macs.values()),
        float_macs=float_macs,
        spent_macs=spent,
        forward_equivalents=spent / max(1, float_macs),
        bit_operations=bit_operations(plan, macs, results),
        float_bit_operations=32 * 32 * float_macs,
        num_layers=len(plan.layers),
        num_quantized=len(results),
        sparsity=sum(r.sparsity * weights[n] for n, r in results.items()) / max(1, sum(weights.values())),
    )


def num_bytes(plan: Plan, teacher: fx.GraphModule, results: dict[str, LayerResult]) -> int:
    """Bytes of all layers' parameters: weights at their real width, scales, 32-bit biases; float where not solved."""
    return sum(layer_bytes(teacher, item.layer, results.get(name)) for name, item in plan.layers.items())


def layer_bytes(teacher: fx.GraphModule, layer: Layer, result: LayerResult | None) -> int:
    """Bytes of one layer's parameters; float where it was not solved."""
    weight, bias = g.weight(teacher, layer), g.bias(teacher, layer)
    if result is None:
        return 4 * (weight.numel() + bias.numel())
    multipliers = len(result.bias) if layer.name in g.layers_with_v_o(teacher) else None
    return 4 * len(result.bias) + weight_bytes(result, multipliers)


def weight_bytes(result: LayerResult, num_multipliers: int | None = None) -> int:
    """Weights at their real width and their scales."""
    size, grid = result.weight.numel(), result.weight_qparams
    scales = 0 if grid is None else num_multipliers or len(grid.scale)
    return stored_size(size, result.bits, round(result.sparsity * size)) + 4 * scales


def bit_operations(plan: Plan, macs: dict[str, int], results: dict[str, LayerResult]) -> int:
    """Multiply-adds times weight bits times input bits, summed over layers, for one image; float counts 32 bits."""
    return sum(
        macs[n] * (results[n].bits if n in results else 32) * (item.input_bits or 32) for n, item in plan.layers.items()
    )
