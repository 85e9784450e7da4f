"""EfficientNet-Lite0, trained on ImageNet, as the demo takes it."""

from __future__ import annotations

from torch import nn

from datafree.demo import LITE0_MEAN as MEAN
from datafree.demo import LITE0_PACKAGES as PACKAGES
from datafree.demo import LITE0_SIDE as SIDE
from datafree.demo import LITE0_STD as STD
from datafree.demo import lite0

__all__ = ["MEAN", "NAME", "NUM_CLASSES", "PACKAGES", "SIDE", "STD", "load"]

NAME = "efficientnet_lite0"
NUM_CLASSES = 1000


def load(name: str = NAME) -> nn.Module:
    """Build the network, float32, in eval mode, BatchNorm not folded; the global random state is left as found.

    Args:
        name: NAME; there is no other network here.
    """
    return lite0()
