"""NVIDIA ModelOpt: `quantize` of an ONNX file, on random images that it feeds itself where none are given."""

from __future__ import annotations

from pathlib import Path

from modelopt.onnx.quantization import quantize  # pyright: ignore[reportMissingImports]


def file(source: Path, target: Path) -> None:
    """A file with the settings it comes with, on a CPU: other values have 16 bits."""
    _quantized(source, target, "fp16")


def float32_file(source: Path, target: Path) -> None:
    """The same, other values left in 32 bits."""
    _quantized(source, target, "fp32")


def _quantized(source: Path, target: Path, other: str) -> None:
    quantize(
        str(source), quantize_mode="int8", calibration_eps=["cpu"], high_precision_dtype=other, output_path=str(target)
    )
