"""AIMET: cross-layer equalization, then a simulated quantized model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from aimet_torch.common.defs import QuantScheme
from aimet_torch.cross_layer_equalization import equalize_model
from aimet_torch.model_preparer import prepare_model
from aimet_torch.quantsim import QuantizationSimModel
from torch import Tensor, nn

CONFIGURATIONS = {"tensor": "default_config.json", "channel": "default_config_per_channel.json"}


def quantized(
    model: nn.Module, images: Tensor | None, *, bits: int, per: str, example: Tensor
) -> Callable[[Tensor], Tensor]:
    """Equalize, then choose ranges of tensors on images."""
    if images is None:
        raise NotImplementedError("compute_encodings runs the network on images; it has none of its own")
    prepared = prepare_model(model)
    equalize_model(prepared, dummy_input=example)
    simulated = QuantizationSimModel(
        prepared, example, quant_scheme=QuantScheme.post_training_tf, default_param_bw=bits, default_output_bw=8,
        config_file=CONFIGURATIONS[per],
    )  # fmt: skip
    with torch.no_grad():
        simulated.compute_encodings(lambda student: [student(part) for part in images.split(32)])
    return simulated.model
