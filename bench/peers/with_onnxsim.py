"""onnxsim: `quantize_static`, quantize and dequantize pairs, after its own simplification."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxsim
from onnx_files import in_onnxruntime, written
from torch import Tensor, nn


def quantized(
    model: nn.Module, images: Tensor | None, *, bits: int, per: str, example: Tensor
) -> Callable[[Tensor], np.ndarray]:
    """Static quantization calibrated on the extremes of images; without, of the normal noise that it feeds itself.

    One scale a tensor it has only for the whole graph, where what lies before a ReLU6 is rounded too.
    """
    if bits != 8:
        raise NotImplementedError("quantize_static has weights of 8 bits; its 4 bits are of matrix products alone")
    plain, _ = onnxsim.simplify(onnx.load(written(model, example, Path("onnxsim.onnx"))))
    feeds = None if images is None else [{"x": image.numpy()} for image in images.split(1)]
    student = onnxsim.quantize_static(plain, feeds, full_graph=per == "tensor", per_channel=per == "channel")
    return in_onnxruntime(student.SerializeToString())


def file(source: Path, target: Path) -> None:
    """A file with the settings it comes with, and of the normal noise that it feeds itself.

    Simplified first, for it leaves in float what is behind padding of sizes that are computed in the file.
    """
    plain, _ = onnxsim.simplify(onnx.load(source))
    onnx.save(onnxsim.quantize_static(plain), target)
