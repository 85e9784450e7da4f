"""Images the command line is given to solve layers on, and those a run made, written for other people's tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from datafree import graph as g
from datafree import run
from datafree.execution import atomic_write
from datafree.images import load_unlabelled
from datafree.models import Normalization, range_of
from datafree.records import NATURAL_MEAN, NATURAL_STD, InputRange
from datafree.run import Run, RunError, png


def write_images(run: Run, out: Path) -> int:
    """Write the images a run made: `images.npy` as the network sees them, and a .png of each; returns how many.

    Raises:
        RunError: it made none, or they are no pictures; or there is something at `out`.
    """
    x = run.images[0] if len(run.images) == 1 and run.images[0].dim() == 4 else None
    if x is None:
        raise RunError(
            f"that run keeps no pictures: its signal is {run.recipe.signal.kind!r}; compress with signal.kind=inverted"
        )
    if out.exists():
        raise RunError(f"{out} exists; choose another --out")
    with atomic_write(out) as place:
        place.mkdir()
        np.save(place / "images.npy", x.numpy())
        for number, image in enumerate(_as_pixels(x, run)):
            (place / f"{number:04d}.png").write_bytes(png(image))
    return len(x)


def _as_pixels(x: Float[Tensor, "n c h w"], run: Run) -> UInt8[Tensor, "n h w 3"]:
    """8-bit pixels of a camera, by the range that images were made in: natural ones have its mean and deviation."""
    chosen, channels = run.summary.input_range, x.shape[1]
    view = lambda values: torch.tensor(values).view(1, -1, 1, 1)  # noqa: E731
    mean, std = chosen.mean or (0.0,), chosen.std or (1.0,)
    natural = (NATURAL_MEAN, NATURAL_STD) if channels == len(NATURAL_MEAN) else ((0.5,), (0.25,))
    shown = (x - view(mean)) / view(std) * view(natural[1]) + view(natural[0])
    shown = shown if channels == len(NATURAL_MEAN) else shown.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return (shown * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def images_given(
    paths: Sequence[Path], network: nn.Module, example: Tensor | tuple[Tensor, ...], pixels: Normalization | None
) -> Run | tuple[Tensor, ...] | None:
    """A run whose images are used as it used them; or images of several places, one behind the other."""
    runs = {path: Run.load(path) for path in paths if (path / "summary.json").is_file()}
    if len(paths) < 2 and len(runs) == len(paths):
        return next(iter(runs.values()), None)
    if not isinstance(example, Tensor):
        raise ValueError("the network has several inputs; give their images from Python")
    fingerprint = g.fingerprint(g.trace(network, example)) if runs else ""
    shape = tuple(example.shape[1:])
    parts = [
        run.images_of(runs[path], fingerprint)[0] if path in runs else load_unlabelled(path, shape=shape, used=pixels)
        for path in paths
    ]
    return (torch.cat(parts),)


def range_given(used: Normalization, example: Tensor) -> InputRange:
    """What the network sees of natural images that are normalised so."""
    channels = example.shape[1]
    if {len(used.mean), len(used.std)} != {channels} or min(used.std) <= 0:
        raise ValueError(
            f"mean {used.mean} and std {used.std} do not fit the network's {channels} input channels; give one number "
            "for each channel, and std above 0"
        )
    return range_of(used)
