"""NNCF: `nncf.quantize`, with its fast bias correction."""

from __future__ import annotations

from collections.abc import Callable

import nncf
from nncf.quantization.advanced_parameters import QuantizationParameters
from torch import Tensor, nn


class Plain(nn.Module):
    """A module around the graph, which by itself is taken for one of torch.export."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, x: Tensor) -> Tensor:
        return self.graph(x)


def quantized(
    model: nn.Module, images: Tensor | None, *, bits: int, per: str, example: Tensor
) -> Callable[[Tensor], Tensor]:
    """Post-training quantization calibrated on images."""
    if images is None:
        raise NotImplementedError("nncf.quantize needs images; without, compress_weights leaves activations in float")
    weights = QuantizationParameters(num_bits=bits, per_channel=per == "channel")
    return nncf.quantize(
        Plain(model),
        nncf.Dataset(images.split(1)),
        subset_size=len(images),
        target_device=nncf.TargetDevice.ANY if bits == 8 else nncf.TargetDevice.NPU,  # no other has 4-bit weights
        advanced_parameters=nncf.AdvancedQuantizationParameters(weights_quantization_params=weights),
    )
