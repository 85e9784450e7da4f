"""What became of every layer, and what it alone does to the network's output."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from datafree import graph as g
from datafree.app.report.grids import input_grids
from datafree.quantization import dequantize
from datafree.records import Layer, LayerResult, QParams
from datafree.run import Run, layer_bytes, layer_sqnr
from datafree.signals import Signal
from datafree.solve import NetworkProbe, Probe


@dataclass(frozen=True)
class LayerRow:
    """One layer; None = not known, or float.

    zeros: percent of the weights. macs: of one image. weights_db: what is left of its output through its weights.
    running_db: the same with the whole student running. weights_noise, input_noise: what rounding its weights, or its
    input, and nothing else in the network, does to the network's output, percent of that output's variance.
    """

    name: str
    shape: str
    bits: int | None
    input_bits: int | None
    zeros: float
    bytes: int
    macs: int
    weights_db: float | None
    running_db: float | None
    weights_noise: float | None
    input_noise: float | None
    remedy: str

    @property
    def noise(self) -> float | None:
        """Percent of the output's variance that the layer alone makes."""
        known = [n for n in (self.weights_noise, self.input_noise) if n is not None]
        return sum(known) if known else None


def layer_rows(run: Run, signal: Signal) -> list[LayerRow]:
    """One row a layer, in the order they run in."""
    one_input = len(signal.inputs) == 1
    looked_at = _Student(
        run=run,
        results={result.name: result for result in run.layers},
        grids=input_grids(run.student),
        macs=g.layer_macs(run.student),
        running=layer_sqnr(run.student, run.teacher, signal.inputs[0]) if one_input else {},
        probe=NetworkProbe(run.teacher, signal),
    )
    return [looked_at.row(layer) for layer in g.layers(run.teacher).values()]


@dataclass(frozen=True)
class _Student:
    """What is looked at for every layer, by its name."""

    run: Run
    results: dict[str, LayerResult]
    grids: dict[str, QParams]
    macs: dict[str, int]
    running: dict[str, float]
    probe: NetworkProbe

    def row(self, layer: Layer) -> LayerRow:
        name, result = layer.name, self.results.get(layer.name)
        grid, weight = self.grids.get(name), g.weight(self.run.teacher, layer)
        return LayerRow(
            name=name,
            shape=_shape_text(weight, result),
            bits=result.bits if result and result.weight_qparams else None,
            input_bits=grid.bits if grid else None,
            zeros=100 * result.sparsity if result else 0.0,
            bytes=layer_bytes(self.run.teacher, layer, result),
            macs=self.macs[name],
            weights_db=_finite(result.error_db) if result else None,
            running_db=_finite(self.running.get(name)),
            weights_noise=self._weights_noise(layer, result),
            input_noise=self._input_noise(name, grid),
            remedy=result.remedy if result else "",
        )

    def _weights_noise(self, layer: Layer, result: LayerResult | None) -> float | None:
        """Percent of the output's variance; None where nothing was solved, or channels were removed."""
        weight, bias = g.weight(self.run.teacher, layer), g.bias(self.run.teacher, layer)
        if result is None or result.weight.numel() != weight.numel():
            return None
        grid, rows = result.weight_qparams, result.weight.float()
        real = dequantize(rows, grid) if grid else rows
        probe = Probe(layer.name, 0.0, real, result.bias - bias)
        return 100 * next(iter(self.probe.output_change([probe])))

    def _input_noise(self, name: str, grid: QParams | None) -> float | None:
        return 100 * self.probe.rounding_change(name, grid) if grid else None


def _shape_text(weight: Tensor, result: LayerResult | None) -> str:
    """Sides of the weights, or how many outputs and taps are left where channels were removed."""
    stored = weight if result is None or result.weight.numel() == weight.numel() else result.weight
    return " x ".join(map(str, stored.shape))


def _finite(db: float | None) -> float | None:
    """Decibel as a page shows them: nothing was lost = not a number."""
    return db if db is not None and math.isfinite(db) else None
