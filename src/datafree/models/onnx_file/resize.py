"""Resize and Upsample of ONNX files: PyTorch's interpolation where it means the same, else pixels picked and mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datafree.models.onnx_file.records import Node
from datafree.models.onnx_file.shapes import ints
from datafree.models.state_dict import ModelError

LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}
ROUNDING = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


@dataclass(frozen=True)
class Side:
    """One dimension that is resized: its length, the length it gets, and the scale between them."""

    dim: int
    length: int
    wanted: int
    scale: float


def resize(node: Node, x: Tensor, *rest: Any) -> Tensor:
    """Upsample has (scales); Resize has (scales) in opset 10, (roi, scales, sizes) since."""
    is_old = len(rest) <= 1
    scales, sizes = ((*rest, None)[0], None) if is_old else (*rest[1:], None, None)[:2]
    scales = node.attributes.get("scales", ()) if scales is None else scales
    sides = _sides(node, x, list(scales), ints(sizes) if sizes is not None and np.size(sizes) else [])
    mode = node.attributes.get("mode", "nearest")
    how = node.attributes.get("coordinate_transformation_mode", "asymmetric" if is_old else "half_pixel")
    rounding = node.attributes.get("nearest_mode", "floor" if is_old else "round_prefer_floor")
    if mode not in ("nearest", "linear") or node.attributes.get("antialias") or how == "tf_crop_and_resize":
        raise ModelError(f"{node}: resizing {mode} with {how} is not read; export the network without it")
    is_exact = all(side.wanted == side.length * side.scale for side in sides)
    if mode == "linear" and is_exact and how in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        size = [side.wanted for side in sides]
        return F.interpolate(x, size=size, mode=LINEAR[x.dim()], align_corners=how == "align_corners")
    if mode == "nearest" and is_exact and _is_plain(sides, how, rounding):
        return F.interpolate(x, size=[side.wanted for side in sides], mode="nearest")
    for side in sides:
        x = _picked(x, side, how, rounding) if mode == "nearest" else _mixed(x, side, how)
    return x


def _sides(node: Node, x: Tensor, scales: list[Any], sizes: list[Any]) -> list[Side]:
    dims = [dim % x.dim() for dim in node.attributes.get("axes", range(x.dim()))]
    given = {}
    for i, dim in enumerate(dims):
        wanted = sizes[i] if sizes else int(x.shape[dim] * float(scales[i])) if dim > 1 else x.shape[dim]
        given[dim] = wanted, wanted / x.shape[dim] if sizes and dim > 1 else float(scales[i]) if not sizes else 1.0
    others = [dim for dim, (wanted, scale) in given.items() if dim < 2 and scale != 1]
    if others or node.attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise ModelError(f"{node}: resizing of channels or by aspect is not read; export the network without it")
    return [Side(dim, x.shape[dim], *given.get(dim, (x.shape[dim], 1.0))) for dim in range(2, x.dim())]


def _is_plain(sides: Sequence[Side], how: str, rounding: str) -> bool:
    """PyTorch's nearest pixel: floor(i n / wanted), which is the same by every rule where the scale is whole."""
    is_whole = all(side.wanted % side.length == 0 for side in sides)
    floors = how == "asymmetric" and rounding == "floor"
    halves = how in ("half_pixel", "pytorch_half_pixel") and rounding.startswith("round")
    return floors or (is_whole and halves)


def _places(side: Side, how: str) -> np.ndarray:
    """Where every pixel comes from, (wanted,), in pixels of the input (ONNX's Resize)."""
    i, n = np.arange(side.wanted, dtype=np.float64), side.length
    if how == "align_corners":
        return i * (n - 1) / max(side.wanted - 1, 1)
    if how == "asymmetric":
        return i / side.scale
    if how == "tf_half_pixel_for_nn":
        return (i + 0.5) / side.scale
    if how == "pytorch_half_pixel" and side.wanted == 1:
        return np.zeros(1)
    middle = n / 2 * (1 - side.wanted / (n * side.scale)) if how == "half_pixel_symmetric" else 0.0
    return middle + (i + 0.5) / side.scale - 0.5


def _picked(x: Tensor, side: Side, how: str, rounding: str) -> Tensor:
    places = ROUNDING[rounding](_places(side, how)).clip(0, side.length - 1)
    return x.index_select(side.dim, torch.from_numpy(places.astype(np.int64)))


def _mixed(x: Tensor, side: Side, how: str) -> Tensor:
    if side.wanted == side.length and side.scale == 1:
        return x
    places = _places(side, how).clip(0, side.length - 1)
    low = np.floor(places).astype(np.int64)
    sides = [1] * x.dim()
    sides[side.dim] = -1
    share = torch.from_numpy((places - low).astype(np.float32)).reshape(sides)
    high = x.index_select(side.dim, torch.from_numpy((low + 1).clip(max=side.length - 1)))
    return x.index_select(side.dim, torch.from_numpy(low)) * (1 - share) + high * share
