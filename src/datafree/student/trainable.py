"""A student whose weights can be trained: rounding passed straight through, activations rounded, zeros kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from datafree import graph as g
from datafree.quantization import dequantize, quantize
from datafree.records import LayerResult, QParams
from datafree.student.assemble import DEQUANTIZE, QUANTIZE, stored_scale

LEAST_STRETCH = 1e-3  # of the scale at the start


@dataclass(frozen=True)
class _Latent:
    """One layer's leaves: weights and bias before any v_o, and what every row's scale is stretched by.

    Weights are real, (C_out, n); `gain` is the v_o that the student's scales hold.
    """

    weight: Tensor
    bias: Tensor
    stretch: Tensor
    qparams: QParams | None
    keep: Tensor | None  # False = zero for ever
    gain: Tensor

    def weights(self) -> Tensor:
        """As the student computes with them; the gradient of rounding is passed straight through."""
        kept = self.weight if self.keep is None else self.weight * self.keep
        if self.qparams is None:
            return kept
        scale, zero_point = (v.expand(len(kept)) for v in (self.qparams.scale, self.qparams.zero_point))
        limits = self.qparams.qmin, self.qparams.qmax
        rounded = torch.fake_quantize_per_channel_affine(kept, scale, zero_point, 0, *limits)
        return rounded * (self.stretch * self.gain)[:, None]

    def result(self, result: LayerResult) -> LayerResult:
        """The layer as it is now."""
        bias = self.bias.detach().clone()
        kept = self.weight.detach() if self.keep is None else self.weight.detach() * self.keep
        if self.qparams is None:
            return replace(result, weight=kept.clone(), bias=bias)
        grid = replace(self.qparams, scale=self.qparams.scale * self.stretch.detach())
        return replace(result, weight=quantize(kept, self.qparams).to(torch.int16), weight_qparams=grid, bias=bias)


class Trainable:
    """A student graph whose weights are leaves: rounding passed straight through, activations rounded, zeros kept.

    The graph is `assemble`'s. At every layer the leaves take the place of the stored integers; a pair of quantize and
    dequantize becomes rounding with the gradient of the identity within the grid (arXiv 1712.05877).
    """

    def __init__(self, student: fx.GraphModule, results: dict[str, LayerResult]) -> None:
        self.student = student
        nodes = g.nodes_by_name(student)
        layers = {name: nodes[layer.node] for name, layer in g.layers(student).items() if name in results}
        self.latents = {name: _latent(student, node, results[name]) for name, node in layers.items()}

    def parameters(self) -> dict[str, Tensor]:
        """Leaves by name."""
        found = {}
        for name, latent in self.latents.items():
            found |= {f"{name}.weight": latent.weight, f"{name}.bias": latent.bias}
            if latent.qparams is not None:
                found[f"{name}.stretch"] = latent.stretch
        return found

    def keep_scales_positive_(self) -> None:
        """Bring back what a step took below `LEAST_STRETCH`: a scale must be positive."""
        with torch.no_grad():
            for latent in self.latents.values():
                latent.stretch.clamp_(min=LEAST_STRETCH)

    def __call__(self, *inputs: Tensor) -> Any:
        """The student's output; of several outputs, the first."""
        wanted = g.outputs(self.student)[0]
        found = None
        for node, values in g.walk(self.student, inputs):
            latent = self.latents.get(g.note(node).layer or "")
            if latent is not None:
                values[g.operand(node, 1)] = g.as_called(node, latent.weights())
                values[g.operand(node, 2)] = latent.bias * latent.gain
            elif node.target is QUANTIZE:
                values[node] = _rounded(values[g.operand(node)], *node.args[1:5])
            elif node.target is DEQUANTIZE and _is_activation(node):
                values[node] = values[g.operand(node)]
            if node is wanted:
                if node not in values:
                    values[node] = g.execute(node, values)
                found = values[node]
        return found

    def results(self, results: dict[str, LayerResult]) -> dict[str, LayerResult]:
        """The layers as they are now."""
        return {n: self.latents[n].result(r) if n in self.latents else r for n, r in results.items()}


def _rounded(x: Tensor, *grid: Any) -> Tensor:
    """To scale, zero_point, qmin, qmax; the gradient is that of the identity within."""
    return torch.fake_quantize_per_tensor_affine(x, *grid)


def _is_activation(node: fx.Node) -> bool:
    source = node.args[0]
    return isinstance(source, fx.Node) and source.target is QUANTIZE


def _latent(student: fx.GraphModule, node: fx.Node, result: LayerResult) -> _Latent:
    grid, weight, gain = result.weight_qparams, result.weight.float(), torch.ones(1)
    stretch = torch.ones(1)
    if grid is not None:
        stored = stored_scale(student, g.weight_node(node))
        weight, gain, stretch = dequantize(weight, grid), stored / grid.scale, torch.ones_like(grid.scale)
    keep = weight != 0 if result.sparsity else None
    weight, bias, stretch = (v.clone().requires_grad_(True) for v in (weight, result.bias, stretch))
    return _Latent(weight, bias, stretch, grid, keep, gain)
