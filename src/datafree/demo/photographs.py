"""A dozen photographs that come with scikit-image and scikit-learn."""

from __future__ import annotations

from importlib import resources
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from datafree.demo.handwriting import DemoError
from datafree.demo.lite0 import LITE0_MEAN, LITE0_SIDE, LITE0_STD
from datafree.extras import install

PHOTOGRAPHS = {
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "temple": ("sklearn", "datasets/images/china.jpg"),
    "photographer": ("skimage", "data/camera.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "blurred clock": ("skimage", "data/clock_motion.png"),
    "astronaut": ("skimage", "data/astronaut.png"),
    "coins": ("skimage", "data/coins.png"),
    "moon": ("skimage", "data/moon.png"),
    "brick wall": ("skimage", "data/brick.png"),
}
"""What each shows, the package it comes with, and its file there; none is downloaded."""
CROP = 0.875  # of the shorter side, as in the network's own evaluation


def photographs() -> Float[Tensor, "n 3 224 224"]:
    """Read PHOTOGRAPHS as EfficientNet-Lite0's input: the middle square, resized (bicubic), (pixel - 127) / 128.

    Raises:
        DemoError: a package they come with is not installed.
    """
    pixels = np.stack([_square(*place) for place in PHOTOGRAPHS.values()])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(LITE0_MEAN).view(3, 1, 1)) / torch.tensor(LITE0_STD).view(3, 1, 1)


def _square(package: str, file: str) -> Any:
    """(224, 224, 3), 8 bits."""
    try:
        from PIL import Image

        path = resources.files(package) / file
    except ModuleNotFoundError as error:
        raise DemoError(f"the photographs come with {package}, and Pillow reads them; {install('demo')}") from error
    with path.open("rb") as opened, Image.open(opened) as image:
        (width, height), half = image.size, CROP * min(image.size) / 2
        box = (width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half)
        resized = image.convert("RGB").resize((LITE0_SIDE, LITE0_SIDE), Image.Resampling.BICUBIC, box=box)
        return np.asarray(resized)
