"""Images without labels, from disk: real ones to solve layers on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from datafree.images.labelled import (
    SUFFIXES,
    ImagesError,
    Pixels,
    as_input,
    check_unpacked,
    check_x,
    read_pixels,
    reading,
)
from datafree.models import Normalization

MOST = 128  # images of one place; more of them take long and tell layers little more


def load_unlabelled(path: Path, *, shape: tuple[int, ...], used: Normalization | None) -> Float[Tensor, "n c h w"]:
    """Read images as a network sees them.

    Args:
        path: a folder of .png or .jpg at any depth, of which at most 128 are read, spread over all; .npy or .npz (`x`)
            with uint8 pixels (N, H, W, C), resized and normalised as files are, or float (N, C, H, W), used as it is.
        shape: (C, H, W) of the network's input.
        used: how 8-bit pixels in 0..1 are normalised; None = they are not.

    Raises:
        ImagesError: nothing there, what cannot be read, or does not fit the network.
    """
    if len(shape) != 3:
        raise ImagesError(f"images are (C, H, W), this network takes {shape}; give tensors from Python")
    pixels = Pixels(shape[1:], shape[0], *((used.mean, used.std) if used else ()))
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not files:
            raise ImagesError(f"{path} holds no run (summary.json) and no .png or .jpg; give a folder that does")
        chosen = (files[i] for i in _spread(len(files)))
        return torch.cat([pixels.to_input(read_pixels(file, channels=shape[0])) for file in chosen])
    if path.suffix not in (".npy", ".npz"):
        raise ImagesError(f"images {path} are no folder, .npy or .npz; give one of these")
    if not path.is_file():
        raise ImagesError(f"images {path} do not exist; give a run, a folder of .png or .jpg, .npy or .npz")
    x = _array(path)
    check_x(x.shape, x.dtype, pixels=pixels, path=path)
    if not len(x):
        raise ImagesError(f"{path} holds no images; x is {x.shape}")
    x = x[_spread(len(x))]
    return as_input(x, pixels, path)


def _spread(total: int) -> list[int]:
    """Places of at most `MOST`, evenly: files of a class follow each other."""
    count = min(MOST, total)
    return [i * total // count for i in range(count)]


def _array(path: Path) -> np.ndarray:
    if path.suffix == ".npz":
        check_unpacked(path)
    with reading(path):
        found = np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found as arrays:
            names, x = arrays.files, arrays["x"] if "x" in arrays.files else None
    if not isinstance(x, np.ndarray):  # a member that is no .npy comes as bytes
        raise ImagesError(f"{path} holds the arrays {', '.join(names) or 'none'}; expected x")
    return x
