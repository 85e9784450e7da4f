"""AMD Quark: two of its ready configurations of 8 bits, with its reader of random data."""

from __future__ import annotations

from pathlib import Path

from quark.onnx import ModelQuantizer  # pyright: ignore[reportMissingImports]
from quark.onnx.quantization.config import Config, get_default_config  # pyright: ignore[reportMissingImports]


def u8s8_file(source: Path, target: Path) -> None:
    """Unsigned activations with a zero point, signed weights."""
    _configured("U8S8_AAWS", source, target)


def xint8_file(source: Path, target: Path) -> None:
    """Scales that are powers of two, for its NPU."""
    _configured("XINT8", source, target)


def _configured(name: str, source: Path, target: Path) -> None:
    settings = get_default_config(name)
    settings.extra_options["UseRandomData"] = True  # else it refuses: there are no images
    ModelQuantizer(Config(global_quant_config=settings)).quantize_model(str(source), str(target), None)
