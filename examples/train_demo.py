"""Train the demo network on scikit-learn's digits: `python examples/train_demo.py --out digits.safetensors`.

With one thread the file comes out the same, bit for bit, on the same machine and PyTorch. Nothing here aims
at quantization, and the weights are saved as training left them: Adam at a high learning rate, no weight
decay, BatchNorm with PyTorch's defaults. Some channels die on the way: their input is 0 for every image,
so their running variance decays to 0, and folding then divides their weights by sqrt(eps).
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree.demo import MEAN, STD, DigitsNet, digits

BATCH_SIZE = 64
PEAK_LEARNING_RATE = 0.03
WARM_UP = 0.05  # share of the steps
ROTATION, ZOOM, SHIFT = 15.0, 0.15, 0.15  # at most: degrees, share, share of half the image
BACKGROUND = -MEAN / STD  # paper without ink


def initialize_(net: nn.Module) -> None:
    """Draw convolution weights from N(0, 2 / fan_out), as torchvision's MobileNetV2 does."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")


def augment(images: Tensor, *, generator: torch.Generator) -> Tensor:
    """Rotate, zoom and shift each image (N, 1, H, W) a little; what comes in from outside is background."""

    def uniform() -> Tensor:
        return torch.rand(len(images), generator=generator) * 2 - 1

    angle = uniform() * math.radians(ROTATION)
    zoom = 1 + uniform() * ZOOM
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    rows = (
        torch.stack([cos, -sin, uniform() * SHIFT], dim=1),
        torch.stack([sin, cos, uniform() * SHIFT], dim=1),
    )
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images - BACKGROUND, grid, align_corners=False) + BACKGROUND


def learning_rate(step: int, *, num_steps: int) -> float:
    """Rise linearly to the peak, then fall to 0 along a cosine."""
    progress = (step + 1) / num_steps
    if progress <= WARM_UP:
        return PEAK_LEARNING_RATE * progress / WARM_UP
    return PEAK_LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def train(images: Tensor, labels: Tensor, *, epochs: int, seed: int) -> DigitsNet:
    """Train a fresh network on augmented digits; the global random state is left as found."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = DigitsNet()
        initialize_(net)
    optimizer = torch.optim.Adam(net.parameters())
    steps_per_epoch = len(images) // BATCH_SIZE
    for step in range(epochs * steps_per_epoch):
        if step % steps_per_epoch == 0:
            order = torch.randperm(len(images), generator=generator)
        rows = order[step % steps_per_epoch * BATCH_SIZE :][:BATCH_SIZE]
        optimizer.param_groups[0]["lr"] = learning_rate(step, num_steps=epochs * steps_per_epoch)
        logits = net(augment(images[rows], generator=generator))
        optimizer.zero_grad()
        F.cross_entropy(logits, labels[rows]).backward()
        optimizer.step()
    return net.eval()


@torch.no_grad()
def top1(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images whose largest logit is their label, in percent."""
    return 100 * (net(images).argmax(1) == labels).float().mean().item()


def main(arguments: list[str] | None = None) -> None:
    """Train, save, and print top-1 on the held-out digits."""
    parser = argparse.ArgumentParser(description="Train the demo network on handwritten digits.")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    net = train(*digits("train"), epochs=options.epochs, seed=options.seed)
    safetensors.torch.save_file(net.state_dict(), options.out)
    images, labels = digits("test")
    print(f"top-1 {top1(net, images, labels):.2f} % of {len(labels)} held-out digits: {options.out}")


if __name__ == "__main__":
    torch.set_num_threads(1)  # sums in one order, so the same bits
    main()
