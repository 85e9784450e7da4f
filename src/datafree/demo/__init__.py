"""Networks and images to try it on, without a download: handwritten digits, and photographs."""

from datafree.demo.handwriting import (
    BLOCKS,
    IMAGE_SHAPE,
    MEAN,
    STD,
    DemoError,
    DigitsNet,
    InvertedResidual,
    digits,
    digits_net,
)
from datafree.demo.lite0 import LITE0_MEAN, LITE0_PACKAGES, LITE0_SIDE, LITE0_STD, imagenet_classes, lite0
from datafree.demo.photographs import PHOTOGRAPHS, photographs

__all__ = [
    "BLOCKS",
    "IMAGE_SHAPE",
    "LITE0_MEAN",
    "LITE0_PACKAGES",
    "LITE0_SIDE",
    "LITE0_STD",
    "MEAN",
    "PHOTOGRAPHS",
    "STD",
    "DemoError",
    "DigitsNet",
    "InvertedResidual",
    "digits",
    "digits_net",
    "imagenet_classes",
    "lite0",
    "photographs",
]
