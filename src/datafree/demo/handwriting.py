"""A small trained network on real handwritten digits: something to compress in seconds.

`digits.safetensors` is made by `examples/train_demo.py`, bit for bit.
"""

from __future__ import annotations

from collections import OrderedDict
from importlib import resources
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from datafree.extras import install

IMAGE_SHAPE = (1, 16, 16)
MEAN, STD = 0.305, 0.319  # of the training digits in 0..1, after resizing
TEST_EVERY = 3

# (C_out, stride) of each inverted residual; a residual sum where stride is 1 and the width does not change.
BLOCKS = ((4, 2), (6, 1), (4, 1), (6, 1), (4, 1), (6, 2), (6, 1), (4, 1), (6, 1), (6, 1))
EXPANSION = 6
WEIGHTS = "digits.safetensors"


class DemoError(ValueError):
    """A network or images that cannot be had: a wrong split, or a package is missing."""


class InvertedResidual(nn.Module):
    """Widen with a 1x1 convolution, filter each channel alone, narrow again; add the input where it fits.

    (arXiv 1801.04381.) Input (N, C_in, H, W), output (N, C_out, H / stride, W / stride).
    """

    def __init__(self, c_in: int, c_out: int, *, stride: int) -> None:
        super().__init__()
        hidden = c_in * EXPANSION
        self.expand = _conv_bn(c_in, hidden)
        self.depthwise = _conv_bn(hidden, hidden, kernel=3, stride=stride, groups=hidden)
        self.project = _conv_bn(hidden, c_out, act=False)
        self.is_residual = stride == 1 and c_in == c_out

    def forward(self, x: Float[Tensor, "n c_in h w"]) -> Float[Tensor, "n c_out h2 w2"]:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.is_residual else y


class DigitsNet(nn.Module):
    """MobileNetV2 in small: depthwise convolutions, BatchNorm, ReLU6, residual sums. Weights are random.

    Images (N, 1, 16, 16) become 10 logits (N, 10). The bottlenecks are 4 and 6 channels narrow: with more
    to spare, rounding would cost this easy task little.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            OrderedDict(
                full=_conv_bn(1, 8, kernel=3),
                depthwise=_conv_bn(8, 8, kernel=3, stride=2, groups=8),
                project=_conv_bn(8, 4, act=False),
            )
        )
        widths = (4, *(width for width, _ in BLOCKS))
        self.blocks = nn.Sequential(
            *(
                InvertedResidual(c_in, c_out, stride=stride)
                for c_in, (c_out, stride) in zip(widths, BLOCKS, strict=False)
            )
        )
        self.head = _conv_bn(widths[-1], 8)
        self.classifier = nn.Linear(8, 10)

    def forward(self, x: Float[Tensor, "n 1 16 16"]) -> Float[Tensor, "n 10"]:
        features = self.head(self.blocks(self.stem(x)))
        return self.classifier(F.adaptive_avg_pool2d(features, 1).flatten(1))


def digits_net() -> DigitsNet:
    """Build the trained digits network, in eval mode."""
    net = DigitsNet()
    packed = resources.files("datafree.demo").joinpath(WEIGHTS).read_bytes()
    net.load_state_dict(safetensors.torch.load(packed))
    return net.eval()


def digits(split: str) -> tuple[Float[Tensor, "n 1 16 16"], Int[Tensor, " n"]]:
    """Read scikit-learn's 1797 handwritten digits (UCI, real scans of 8x8) as the network's input.

    Every third image of each digit, in the order of the data set, is held out as "test" (596), the others
    are "train" (1201). Both hold the same writers. Pixels 0..16 are divided by 16, resized to 16x16
    (bilinear), and become (x - 0.305) / 0.319.

    Args:
        split: "train" or "test".

    Raises:
        DemoError: another split, or scikit-learn is not installed.
    """
    if split not in ("train", "test"):
        raise DemoError(f'there is no split {split!r} of the digits; allowed are "train" and "test"')
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise DemoError(f"the digits come with scikit-learn; {install('demo')}") from error
    data: Any = load_digits()
    labels = torch.as_tensor(data.target).long()
    chosen = _is_test(labels) if split == "test" else ~_is_test(labels)
    pixels = torch.as_tensor(data.images).float().unsqueeze(1)[chosen] / 16
    resized = F.interpolate(pixels, size=IMAGE_SHAPE[1:], mode="bilinear", align_corners=False)
    return (resized - MEAN) / STD, labels[chosen]


def _is_test(labels: Int[Tensor, " n"]) -> Tensor:
    """True for each third image of its class, (N,) bool."""
    count_so_far = F.one_hot(labels).cumsum(0).gather(1, labels.unsqueeze(1)).squeeze(1)
    return count_so_far % TEST_EVERY == 0


def _conv_bn(
    c_in: int, c_out: int, *, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    """Chain convolution, BatchNorm and, where `act`, ReLU6; H and W shrink only by the stride."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    layers: list[tuple[str, nn.Module]] = [("conv", conv), ("bn", nn.BatchNorm2d(c_out))]
    return nn.Sequential(OrderedDict([*layers, ("act", nn.ReLU6())] if act else layers))
