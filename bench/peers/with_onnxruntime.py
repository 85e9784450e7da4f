"""ONNX Runtime: `quantize_static`, quantize and dequantize pairs, after its own preprocessing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
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
    """Static quantization calibrated on the extremes of images."""
    assert images is not None, "quantize_static needs calibration images"
    with tempfile.TemporaryDirectory() as folder:
        plain, ready, small = (str(Path(folder) / f"{name}.onnx") for name in ("plain", "ready", "small"))
        torch.onnx.export(
            model,
            (example.repeat(2, 1, 1, 1),),
            plain,
            input_names=["x"],
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("n")},),
            external_data=False,
            opset_version=21,
            verbose=False,
        )
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        quantize_static(
            ready,
            small,
            Reader(images),
            quant_format=QuantFormat.QDQ,
            per_channel=per == "channel",
            weight_type=QuantType.QInt8 if bits == 8 else QuantType.QInt4,
        )
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.x64quantprecision", "1")  # else x86 without VNNI saturates
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(small, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x.numpy()})[0]
