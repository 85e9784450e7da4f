"""ONNX Runtime: `quantize_static`, quantize and dequantize pairs, after its own preprocessing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx_files import in_onnxruntime, written
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn


class Reader(CalibrationDataReader):
    """Hands out one image at a time."""

    def __init__(self, images: Tensor) -> None:
        self.feeds = iter([{"x": image.numpy()} for image in images.split(1)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def quantized(
    model: nn.Module, images: Tensor | None, *, bits: int, per: str, example: Tensor
) -> Callable[[Tensor], np.ndarray]:
    """Static quantization calibrated on the extremes of images; without, ranges of the image at hand."""
    if images is None and bits != 8:
        raise NotImplementedError("quantize_dynamic writes ConvInteger, whose weights have 8 bits")
    ready, small = Path("ready.onnx"), Path("small.onnx")
    quant_pre_process(written(model, example, Path("plain.onnx")), ready, skip_symbolic_shape=True)
    wide = per == "channel"
    if images is None:
        quantize_dynamic(ready, small, per_channel=wide, weight_type=QuantType.QUInt8)  # its kernel has no other
    else:
        kind = QuantType.QInt8 if bits == 8 else QuantType.QInt4
        quantize_static(
            ready, small, Reader(images), quant_format=QuantFormat.QDQ, per_channel=wide, weight_type=kind
        )  # fmt: skip
    return in_onnxruntime(str(small))
