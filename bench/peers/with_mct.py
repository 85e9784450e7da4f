"""Sony's Model Compression Toolkit: `pytorch_post_training_quantization` for its default device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import model_compression_toolkit as mct
import torch
from model_compression_toolkit.target_platform_capabilities.constants import KERNEL_ATTR
from model_compression_toolkit.target_platform_capabilities.tpc_models.imx500_tpc.v1_0 import tpc as imx500
from torch import Tensor, nn

NUM_IMAGES, STEPS = 32, 100  # it makes by default 500 steps: hours on one core
MADE = Path("made_by_mct.pt")  # beside the network, for the next preset


def quantized(
    model: nn.Module, images: Tensor | None, *, bits: int, per: str, example: Tensor
) -> Callable[[Tensor], Tensor]:
    """Post-training quantization calibrated on images; without, on images that it makes from BatchNorm."""
    if images is None:
        if not MADE.exists():
            torch.save(made(model, example), MADE)
        images = torch.load(MADE)

    def batches() -> Iterator[list[Tensor]]:
        yield from ([part] for part in images.split(32))

    device = described(bits, per)
    student, _ = mct.ptq.pytorch_post_training_quantization(model, batches, target_platform_capabilities=device)
    return student


def described(bits: int, per: str):
    """Its default device, with other weights: the way its own file says."""
    base, _, other = imx500.get_op_quantization_configs()
    kernel = {"weights_n_bits": bits, "weights_per_channel_threshold": per == "channel"}
    base = base.clone_and_edit(attr_to_edit={KERNEL_ATTR: kernel})
    return imx500.generate_tpc(
        default_config=other, base_config=base, mixed_precision_cfg_list=[base], name="imx500_tpc"
    )


def made(model: nn.Module, example: Tensor) -> Tensor:
    """Images that have the statistics of BatchNorm, (N, C, H, W)."""
    data = mct.data_generation
    symmetric = float(example.abs().max()) <= 1.01  # pixels between -1 and 1, else normalised as torchvision does
    kind = data.ImageNormalizationType.KERAS_APPLICATIONS if symmetric else data.ImageNormalizationType.TORCHVISION
    settings = data.get_pytorch_data_generation_config(
        n_iter=STEPS, data_gen_batch_size=NUM_IMAGES, image_normalization_type=kind
    )
    return torch.cat(
        [
            image.detach().reshape(-1, *example.shape[1:])
            for image in data.pytorch_data_generation_experimental(
                model, n_images=NUM_IMAGES, output_image_size=tuple(example.shape[2:]), data_generation_config=settings
            )
        ]
    )
