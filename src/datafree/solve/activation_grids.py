"""The integer grid of a tensor between layers: clipped where that moves the layers that read it least."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, fx

from datafree import graph as g
from datafree.execution import in_turn
from datafree.graph import operator_of, positions, unfold
from datafree.quantization import choose_qparams, fake_quantize, search_grid
from datafree.recipe import TARGETS, USUAL, Target
from datafree.records import Layer, QParams
from datafree.signals import Signal
from datafree.solve.plan import WIDE, quantized_at

SAMPLE = 2**16  # values looked at
ROWS = 1024  # output positions looked at
FACTORS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5)  # of the range that is best for the values themselves

RESERVE = 2.0  # of the range of outputs: real images take a network further than made ones (ours: 1.6 to 2.5 times)


def tensor_grid(
    teacher: fx.GraphModule, node: fx.Node, x: Tensor, bits: int, source: Signal, *, readers: tuple[Layer, ...] = (),
    target: Target = TARGETS[USUAL],
) -> QParams:  # fmt: skip
    """The grid of what `node` puts out: by the layers that read it; of the network's input, by what may come in."""
    symmetric = not target.zero_points
    if node.op == "placeholder" and source.input_limits is not None:
        found = input_grid(source.input_limits[g.placeholders(teacher).index(node)], bits, symmetric=symmetric)
    elif target.rounded == "everything" and _is_open_output(teacher, node):
        found = output_grid(x, bits, symmetric=symmetric)
    else:
        found = activation_grid(teacher, x, bits, source.seed, readers=readers, symmetric=symmetric)
    return _signed(found) if target.signed else found


def _signed(grid: QParams) -> QParams:
    """The grid in two's complement: the same values of other integers; a symmetric one has an integer more below."""
    if grid.qmin < 0:
        return replace(grid, qmin=grid.qmin - 1)
    half = (grid.qmax + 1) // 2
    return QParams(grid.scale, grid.zero_point - half, grid.qmin - half, grid.qmax - half)


def activation_grid(
    teacher: fx.GraphModule, x: Tensor, bits: int, seed: int, *, readers: tuple[Layer, ...] = (),
    symmetric: bool = False,
) -> QParams:  # fmt: skip
    """One grid for a whole tensor.

    First the clipping that minimises the square error of a sample of the values; then, below 8 bits, the factors of
    that range, of both ends at once and then of each end alone, which minimise the error at the output of the layers
    that read the tensor, each relative to its output's variance (ours). Means do not count, the bias corrects them.

    Args:
        x: the tensor, (N, C, ...).
        readers: layers whose input is this tensor at this width.
        symmetric: zero_point 0, integers of either sign; else unsigned.
    """
    first = _by_values(x, bits, seed, symmetric=symmetric)
    if bits >= WIDE or not readers:
        return first
    low, high = (float((q - first.zero_point) * first.scale) for q in (first.qmin, first.qmax))
    least, most = (float(end) for end in _ends(x))
    least, most = min(0.0, least), max(0.0, most)
    ends = [(low, high)]
    for moves in ((1, 1), (0, 1), (1, 0)) if low < 0 < high else ((1, 1),):
        low, high = ends[-1]
        tried = [(max(least, low * f ** moves[0]), min(most, high * f ** moves[1])) for f in FACTORS]
        error = sum(
            _output_errors(teacher, layer, x, [_covering(e, bits, symmetric=symmetric) for e in tried], seed)
            for layer in readers
        )
        ends.append(tried[int(torch.as_tensor(error).argmin())])
    return _covering(ends[-1], bits, symmetric=symmetric)


def _covering(ends: tuple[float, float], bits: int, *, symmetric: bool) -> QParams:
    low, high = (torch.tensor([end]) for end in ends)
    return choose_qparams(low, high, bits=bits, symmetric=symmetric)


def input_grid(reach: tuple[float, float], bits: int, *, symmetric: bool = False) -> QParams:
    """The grid of an input of the network: whatever a real one may hold, for what was made here says little of that."""
    return _covering(reach, bits, symmetric=symmetric)


def output_grid(x: Tensor, bits: int, *, symmetric: bool = False) -> QParams:
    """The grid of an output of the network: nothing is clipped, and as much again is kept free.

    The largest logit is the answer: where several end at the top of a grid, the classes are no longer told apart.
    """
    least, most = (RESERVE * float(end) for end in _ends(x))
    return _covering((least, most), bits, symmetric=symmetric)


def _is_open_output(teacher: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the network gives a node's values, and nothing says how far they reach."""
    given = {quantized_at(output) for output in g.outputs(teacher)}
    return node in given and operator_of(node).within is None and g.clip_bounds(node) is None


def _by_values(x: Tensor, bits: int, seed: int, *, symmetric: bool) -> QParams:
    generator = torch.Generator().manual_seed(seed)
    pick = torch.randint(x.numel(), (min(SAMPLE, x.numel()),), generator=generator)
    sample = torch.cat([_picked(x, pick), _ends(x)])
    importance = torch.ones_like(sample)
    importance[-2:] = 0  # the extremes bound the search; they are too rare to count as much as what was drawn
    return search_grid(sample[None], bits=bits, symmetric=symmetric, importance=importance[None])


def _picked(x: Tensor, pick: Int[Tensor, " s"]) -> Tensor:
    """Values of a tensor by their number, whether it lies in memory or in a file."""
    found, start = x.new_empty(len(pick)), 0
    for part in in_turn(x):
        own = (pick >= start) & (pick < start + part.numel())
        found[own] = part.flatten()[pick[own] - start]
        start += part.numel()
    return found


def _ends(x: Tensor) -> Float[Tensor, "2"]:
    """The smallest and the largest value of a tensor, whether it lies in memory or in a file."""
    lows, highs = zip(*((part.amin(), part.amax()) for part in in_turn(x)), strict=True)
    return torch.stack([torch.stack(lows).amin(), torch.stack(highs).amax()])


def _output_errors(teacher: fx.GraphModule, layer: Layer, x: Tensor, trials: list[QParams], seed: int) -> Tensor:
    """Variance of W (u - Q(u)) for every grid, as a share of that of W u."""
    weight = g.weight(teacher, layer)
    rows = g.grouped(weight, layer.groups).transpose(1, 2)  # (g, n, o)
    u = unfold(x, layer, positions(x.shape, layer, ROWS, seed)).permute(1, 0, 2)  # (g, r, n)
    errors = [((fake_quantize(u, trial) - u) @ rows).var(1, correction=0).sum() for trial in trials]
    return torch.stack(errors) / (u @ rows).var(1, correction=0).sum().clamp(min=1e-30)
