"""Brevitas: equalize, quantize, calibrate, correct biases, as its classification example does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from brevitas.graph.calibrate import bias_correction_mode, calibration_mode
from brevitas.graph.quantize import preprocess_for_quantize
from brevitas_examples.imagenet_classification.ptq.ptq_common import quantize_model
from torch import Tensor, nn


def quantized(
    model: nn.Module, images: Tensor | None, *, bits: int, per: str, example: Tensor
) -> Callable[[Tensor], Tensor]:
    """Equalize, then choose ranges of tensors on images and correct the mean of every layer's output on them."""
    assert images is not None, "calibration_mode needs calibration images"
    ready = preprocess_for_quantize(model, equalize_iters=20, equalize_merge_bias=True)
    student = quantize_model(
        ready, backend="fx", weight_bit_width=bits, act_bit_width=8, bias_bit_width=32,
        weight_quant_granularity=f"per_{per}", act_quant_percentile=99.999, act_quant_type="sym",
        scale_factor_type="float_scale", quant_format="int",
    )  # fmt: skip
    with torch.no_grad():
        for mode in (calibration_mode, bias_correction_mode):
            with mode(student):
                for part in images.split(32):
                    student(part)
    return student
