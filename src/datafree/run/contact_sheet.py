"""Images side by side as one PNG, to look at."""

from __future__ import annotations

import math
import struct
import zlib

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

MOST = 64  # images shown
WIDTH = 1600  # pixels of the sheet, about


def contact_sheet(images: Float[Tensor, "n c h w"]) -> bytes:
    """PNG of the first 64 images in a square; every channel stretched over what 98 % of the sheet's pixels reach.

    Networks see pixels in units of their own, so colours are those of the sheet, not of a camera. One or two channels,
    or more than three, are shown as the grey of their mean.
    """
    x = images[:MOST].detach().float()
    x = x if x.shape[1] == 3 else x.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    flat = x.transpose(0, 1).flatten(1)
    low, high = (_quantile(flat, q).view(1, 3, 1, 1) for q in (0.01, 0.99))
    pixels = ((x - low) / (high - low).clamp(min=1e-6) * 255).clamp(0, 255).to(torch.uint8)
    return png(_side_by_side(pixels))


def _quantile(x: Float[Tensor, "c n"], share: float) -> Tensor:
    """Of large tensors too, which `torch.quantile` refuses."""
    return x.sort(1).values[:, round(share * (x.shape[1] - 1))]


def _side_by_side(pixels: UInt8[Tensor, "n 3 h w"]) -> UInt8[Tensor, "h2 w2 3"]:
    count, _, height, width = pixels.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    zoom = max(1, WIDTH // (columns * (width + 2)))
    sheet = torch.full((rows * columns, 3, zoom * height + 2, zoom * width + 2), 255, dtype=torch.uint8)
    zoomed = pixels.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    sheet[:count, :, 1:-1, 1:-1] = zoomed
    tiled = sheet.view(rows, columns, *sheet.shape[1:]).permute(0, 3, 1, 4, 2)
    return tiled.reshape(rows * sheet.shape[2], columns * sheet.shape[3], 3)


def png(pixels: UInt8[Tensor, "h w 3"]) -> bytes:
    """8-bit RGB, no filter (PNG, second edition, W3C 2003)."""
    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + bytes(row.flatten().numpy()) for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 6)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
