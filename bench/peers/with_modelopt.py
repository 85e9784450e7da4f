"""NVIDIA ModelOpt: `quantize` of an ONNX file, quantize and dequantize pairs, other values in 16 bits."""

from __future__ import annotations

from pathlib import Path

from modelopt.onnx.quantization import quantize  # pyright: ignore[reportMissingImports]


def file(source: Path, target: Path) -> None:
    """A file with the settings it comes with, on a CPU; without images it feeds random ones itself."""
    quantize(str(source), quantize_mode="int8", calibration_eps=["cpu"], output_path=str(target))
