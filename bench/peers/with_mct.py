"""Sony's Model Compression Toolkit: `pytorch_post_training_quantization` with its default target."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import model_compression_toolkit as mct
from torch import Tensor, nn


def quantized(
    model: nn.Module, images: Tensor | None, *, bits: int, per: str, example: Tensor
) -> Callable[[Tensor], Tensor]:
    """Post-training quantization calibrated on images; without, on images it generates from BatchNorm itself."""
    if (bits, per) != (8, "channel"):
        raise NotImplementedError("its default target has 8 bits per channel; others need a description of a device")

    def batches() -> Iterator[list[Tensor]]:
        yield from ([part] for part in images.split(32))

    student, _ = mct.ptq.pytorch_post_training_quantization(model, batches)
    return student
