"""Procedural images as unlike one another as photographs are, for networks without BatchNorm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from datafree.signals.probes import standardised

# ours, of unit-deviation images; dead leaves as they come are all equally sharp, and differ by 0.09 and 0.2
NEAREST = 3.0  # times an image is magnified at most, which leaves it as much less sharp
CONTRAST = 0.4  # deviation of the logarithm of an image's contrast
BRIGHTNESS = 0.5  # deviation of an image's mean


def varied(unit: Float[Tensor, "n c ..."], limit: float, generator: torch.Generator) -> Float[Tensor, "n c ..."]:
    """Magnify each image, and give it a contrast and a brightness of its own (ours).

        x' = e^(a z1) x(p / s) + b z2,   z ~ N(0, 1),   log s ~ U(0, log 3)

    Photographs are sharp or not, dim or bright, flat or full of contrast. BatchNorm makes up for a batch that is not;
    without it inner layers see too few of the directions real images take them to.

    Args:
        unit: zero mean and unit deviation over the batch; what is no image (N, C, H, W) stays as it is.
        limit: no pixel is further from zero.
        generator: on CPU; advanced.

    Returns:
        The images, at zero mean and unit deviation over the batch but for what the limit cuts.
    """
    if unit.dim() != 4:
        return unit
    n = len(unit)
    shrink = NEAREST ** -torch.rand(n, generator=generator)
    contrast = (CONTRAST * torch.randn(n, generator=generator)).exp()
    brightness = BRIGHTNESS * torch.randn(n, generator=generator)
    centre = torch.diag_embed(shrink[:, None].expand(n, 2))
    grid = F.affine_grid(F.pad(centre, (0, 1)), list(unit.shape), align_corners=False)
    near = F.grid_sample(unit, grid, padding_mode="border", align_corners=False)
    view = (n, 1, 1, 1)
    return standardised(near * contrast.view(view) + brightness.view(view)).clamp(-limit, limit)
