"""Procedural probe images: dead leaves and 1/f noise, with the statistics of photographs and no data."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from datafree.execution import one_thread

NUM_LEAVES = 400  # an image; about a tenth of the pixels stay bare and show the noise alone
RADIUS_MIN, RADIUS_MAX = 0.02, 0.5  # of the longer side
MARGIN = 0.1  # centres lie up to this far outside the image, of the longer side
NOISE = 0.15  # std of the 1/f noise over the leaves, whose colours lie within about [-1, 1]
LEAF_ROWS = 2**20  # rasterised at a time; keeps the index lists within some 100 MB
NUMBERS = 2**22  # transformed at a time; spectra of all images would take several times their memory

# luminance and two opponent axes (columns): correlations 0.40, 0.55, 0.55; other counts get their mean
RGB_MIX = ((0.8, 0.45, 0.4), (0.8, 0.0, -0.6), (0.8, -0.45, 0.2))
CHANNEL_CORRELATION = 0.5


class _Leaves(NamedTuple):
    """k leaves for each of n images, front to back; in pixels, (0, 0) = centre of the first one.

    A leaf is a disc, or a rectangle of half sides (radius, half_height) turned by angle. Its value at (x, y):
    paint + slope_x * x + slope_y * y.
    """

    x: Float[Tensor, "n k"]
    y: Float[Tensor, "n k"]
    radius: Float[Tensor, "n k"]
    half_height: Float[Tensor, "n k"]
    angle: Float[Tensor, "n k"]
    is_disc: Bool[Tensor, "n k"]
    paint: Float[Tensor, "n c k"]
    slope_x: Float[Tensor, "n k"]
    slope_y: Float[Tensor, "n k"]


def dead_leaves(
    num_images: int, *, height: int, width: int, channels: int = 3, generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """Draw images of shapes that hide one another, with edges and sizes as in photographs.

    Radii follow p(r) ~ r^-3, which makes the images scale invariant (dead leaves: Lee, Mumford & Huang 2001).
    Half of the leaves are discs, half turned rectangles, in correlated colours with a slight linear shading;
    0.15 of 1/f noise lies over them (mixture: ours). The generator's state fixes every bit, on any number of
    threads.

    Args:
        num_images: N, at least 1.
        height, width: H, W in pixels, at least 1; radii are relative to the longer one, discs are round.
        channels: C, at least 1.
        generator: on CPU; advanced.

    Returns:
        (N, C, H, W) float32, mean 0 and std 1 per channel over the batch (0 if that is one pixel).

    Raises:
        ValueError: a size below 1; names it.
    """
    _check_sizes(num_images=num_images, height=height, width=width, channels=channels)
    with one_thread():
        leaves = _draw_leaves(num_images, height, width, channels, generator)
        batch = max(1, LEAF_ROWS // (NUM_LEAVES * height))
        batches = zip(*(field.split(batch) for field in leaves), strict=True)
        images = torch.cat([_paint(_Leaves(*fields), height, width) for fields in batches])
        return standardised(images.add_(_pink(num_images, height, width, channels, generator), alpha=NOISE))


def pink_noise(
    num_images: int, *, height: int, width: int, channels: int, generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """Draw Gaussian noise whose amplitude falls as 1/f, as in photographs, in correlated channels.

    White noise divided by its frequency, at least one cycle along the longer side; then three channels are
    mixed as luminance and two opponent axes, any other number with equal correlations (ours).
    Args, Returns and Raises are those of `dead_leaves`.
    """
    _check_sizes(num_images=num_images, height=height, width=width, channels=channels)
    with one_thread():
        return standardised(_pink(num_images, height, width, channels, generator))


def _draw_leaves(n: int, height: int, width: int, channels: int, generator: torch.Generator) -> _Leaves:
    def uniform(low: float, high: float) -> Float[Tensor, "n k"]:
        return low + (high - low) * torch.rand(n, NUM_LEAVES, generator=generator)

    side = max(height, width, 2) - 1  # pixels from the first centre to the last
    margin = MARGIN * side
    radius = side * uniform(RADIUS_MAX**-2, RADIUS_MIN**-2).rsqrt()  # r^-2 is uniform: p(r) ~ r^-3
    x, y = uniform(-margin, width - 1 + margin), uniform(-margin, height - 1 + margin)
    half_height, angle, is_disc = radius * uniform(0.6, 1.0), uniform(0.0, math.pi), uniform(0.0, 1.0) < 0.5
    colour = uniform(-1.0, 1.0)[:, None] + 0.35 * torch.randn(n, channels, NUM_LEAVES, generator=generator)
    slope_x, slope_y = torch.randn(2, n, NUM_LEAVES, generator=generator) / side
    paint = colour - (slope_x * x + slope_y * y)[:, None]  # the colour is met at the leaf's centre
    return _Leaves(x, y, radius, half_height, angle, is_disc, paint, slope_x, slope_y)


def _paint(leaves: _Leaves, height: int, width: int) -> Float[Tensor, "n c h w"]:
    """Give every pixel the value of the first leaf over its centre, 0 where there is none."""
    front = _front_leaf(leaves, height, width)
    # F.pad adds a leaf of value 0 behind all others, number k, for the bare pixels
    slope_x, slope_y = (F.pad(slope, (0, 1)).gather(1, front) for slope in (leaves.slope_x, leaves.slope_y))
    columns, rows = torch.arange(width).repeat(height), torch.arange(height).repeat_interleave(width)
    shading = slope_x * columns + slope_y * rows  # (n, h*w)
    paint = F.pad(leaves.paint, (0, 1)).gather(2, front[:, None].expand(-1, leaves.paint.shape[1], -1))
    return (paint + shading[:, None]).unflatten(2, (height, width))


def _front_leaf(leaves: _Leaves, height: int, width: int) -> Int[Tensor, "n hw"]:
    """Number of the first leaf over each pixel, k = none: the least in the lists of what the leaves cover."""
    n, k = leaves.x.shape
    start, stop = _row_spans(leaves, height, width)
    image, leaf, row = (start < stop).nonzero(as_tuple=True)
    start, length = start[image, leaf, row], (stop - start)[image, leaf, row]
    offset = (image * height + row) * width + start - (length.cumsum(0) - length)
    pixel = offset.repeat_interleave(length)
    pixel += torch.arange(len(pixel))  # counts on within every span
    front = torch.full((n * height * width,), k)
    return front.scatter_reduce_(0, pixel, leaf.repeat_interleave(length), "amin").view(n, height * width)


def _row_spans(leaves: _Leaves, height: int, width: int) -> tuple[Int[Tensor, "n k h"], Int[Tensor, "n k h"]]:
    """Columns [start, stop) under each leaf in each row. A leaf is convex, so this is all of it."""
    x, y, radius, half_height, angle, is_disc = (field[..., None] for field in leaves[:6])
    dy = torch.arange(height) - y  # (n, k, h)
    half_chord = (radius**2 - dy**2).clamp(min=0).sqrt()
    # rectangle: |dx cos + dy sin| < radius and |dx sin - dy cos| < half_height, solved for dx
    cos, sin = angle.cos(), angle.sin().clamp(min=1e-6)  # float32 never meets cos = 0
    middle, reach = -dy * (sin / cos), radius / cos.abs()
    other_middle, other_reach = dy * (cos / sin), half_height / sin
    left = torch.where(is_disc, -half_chord, torch.maximum(middle - reach, other_middle - other_reach))
    right = torch.where(is_disc, half_chord, torch.minimum(middle + reach, other_middle + other_reach))
    return ((x + left).floor() + 1).clamp(0, width).long(), (x + right).ceil().clamp(0, width).long()


def _pink(n: int, height: int, width: int, channels: int, generator: torch.Generator) -> Float[Tensor, "n c h w"]:
    noise = torch.randn(n, channels, height, width, generator=generator)
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width))
    frequency = frequency.clamp(min=1 / max(height, width))
    for part in noise.tensor_split(max(1, min(n // 2, noise.numel() // NUMBERS))):  # of two images, or other bits
        part.copy_(torch.fft.irfft2(torch.fft.rfft2(part) / frequency, s=(height, width)))
    noise /= noise.std(correction=0).clamp(min=1e-6)
    return (_channel_mix(channels) @ noise.flatten(2)).view_as(noise)


def _channel_mix(channels: int) -> Float[Tensor, "c c"]:
    if channels == 3:
        return torch.tensor(RGB_MIX)
    # the square root of the correlation matrix that has 1 on the diagonal and CHANNEL_CORRELATION beside it
    own = math.sqrt(1 - CHANNEL_CORRELATION)
    shared = (math.sqrt(1 + CHANNEL_CORRELATION * (channels - 1)) - own) / channels
    return own * torch.eye(channels) + shared


def standardised(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    std, mean = torch.std_mean(images, (0, 2, 3), correction=0, keepdim=True)
    return (images - mean).div_(std.clamp(min=1e-6))


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(
                f"{name} is {size}; probe images need 1 or more; num_images is signal.images of the recipe, "
                "channels, height and width are those of the model's input (N, C, H, W)"
            )
