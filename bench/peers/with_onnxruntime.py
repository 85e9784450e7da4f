"""ONNX Runtime: `quantize_static`, quantize and dequantize pairs, after its own preprocessing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnx_files import in_onnxruntime, written
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

NUM_NOISE = 16  # images of noise: ranges are the same with more


class Reader(CalibrationDataReader):
    """Hands out one image at a time."""

    def __init__(self, images: Tensor, name: str = "x") -> None:
        self.feeds = iter([{name: image.numpy()} for image in images.split(1)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def quantized(
    model: nn.Module, images: Tensor | None, *, bits: int, per: str, example: Tensor
) -> Callable[[Tensor], np.ndarray]:
    """Static quantization calibrated on the extremes of images; without, ranges of the image at hand."""
    if images is None and bits != 8:
        raise NotImplementedError("quantize_dynamic writes ConvInteger, whose weights have 8 bits")
    ready, small = _prepared(written(model, example, Path("plain.onnx"))), Path("small.onnx")
    wide = per == "channel"
    if images is None:
        quantize_dynamic(ready, small, per_channel=wide, weight_type=QuantType.QUInt8)  # its kernel has no other
    else:
        kind = QuantType.QInt8 if bits == 8 else QuantType.QInt4
        _static(ready, small, Reader(images), per_channel=wide, kind=kind)
    return in_onnxruntime(str(small))


def _prepared(source: Path) -> Path:
    """The file after its preprocessing."""
    ready = Path("ready.onnx")
    quant_pre_process(source, ready, skip_symbolic_shape=True)
    return ready


def _static(ready: Path, small: Path, reader: Reader, *, per_channel: bool, kind: QuantType) -> None:
    quantize_static(ready, small, reader, quant_format=QuantFormat.QDQ, per_channel=per_channel, weight_type=kind)


# ---- files, given no image


def dynamic_file(source: Path, target: Path) -> None:
    """Ranges of the image at hand, with its own settings: signed weights, a scale a tensor."""
    quantize_dynamic(_prepared(source), target)


def dynamic_unsigned_file(source: Path, target: Path) -> None:
    """The same with unsigned weights, a scale a channel."""
    quantize_dynamic(_prepared(source), target, per_channel=True, weight_type=QuantType.QUInt8)


def uniform_noise_file(source: Path, target: Path) -> None:
    """Static quantization on noise that is spread evenly from 0 to 1."""
    _on_noise(source, target, torch.rand)


def normal_noise_file(source: Path, target: Path) -> None:
    """Static quantization on noise of mean 0 and standard deviation 1."""
    _on_noise(source, target, torch.randn)


def _on_noise(source: Path, target: Path, noise: Callable[..., Tensor]) -> None:
    ready = _prepared(source)
    taken = onnxruntime.InferenceSession(ready, providers=["CPUExecutionProvider"]).get_inputs()[0]
    reader = Reader(noise(NUM_NOISE, *taken.shape[1:]), taken.name)
    _static(ready, target, reader, per_channel=True, kind=QuantType.QInt8)
