"""The images that a run made, small enough to travel in a page."""

from __future__ import annotations

import base64
import io

import torch.nn.functional as F
from torch import Tensor

from datafree.run import Run, contact_sheet

NUM_IMAGES = 24
SIDE = 112  # pixels; larger images are made smaller
QUALITY = 78  # of WebP


def picture_of(run: Run) -> tuple[str, int]:
    """A data: address of the first images side by side, and how many these are; "" where the run keeps none."""
    shown = [x for x in run.images if x.dim() == 4][:1]
    if not shown:
        return "", 0
    few = shown[0][:NUM_IMAGES]
    return _address(contact_sheet(_smaller(few))), len(few)


def _smaller(images: Tensor) -> Tensor:
    scale = SIDE / max(images.shape[2:])
    return images if scale >= 1 else F.interpolate(images, scale_factor=scale, mode="bilinear", antialias=True)


def _address(png: bytes) -> str:
    from PIL import Image

    written = io.BytesIO()
    Image.open(io.BytesIO(png)).save(written, "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(written.getvalue()).decode()}"
