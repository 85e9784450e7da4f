"""Networks trained here on scikit-learn's digits, for benches that run without the folder of trained networks.

    from bench.networks import digits
    model = digits.load("resnet_digits")       # float32, eval mode, BatchNorm not folded; trained once, then cached
    x, y = digits.images("resnet_digits")      # the 596 held-out digits, (N, 1, 16, 16) and (N,)

`python -m bench.networks.digits` trains both and prints their accuracy. Nothing in training aims at quantization.
Training runs on one thread, so that a machine and a PyTorch give the same bits each time.
"""

from __future__ import annotations

import math
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree.demo import MEAN, STD, digits
from datafree.execution.atomic import atomic_write
from datafree.execution.pools import one_thread

SEED = 1
BATCH_SIZE = 64
WARM_UP = 0.1  # share of the steps
ROTATION, ZOOM, SHIFT = 10.0, 0.1, 0.1  # at most: degrees, share, share of half the image
BACKGROUND = -MEAN / STD  # paper without ink
NUM_CALIBRATION = 128  # test images at the end, never evaluated on


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, a 1x1 convolution where the shape changes (arXiv 1512.03385)."""

    def __init__(self, c_in: int, c_out: int, *, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(c_in, c_out, stride=stride), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = _conv(c_out, c_out), nn.BatchNorm2d(c_out)
        same = stride == 1 and c_in == c_out
        short = (_conv(c_in, c_out, kernel=1, stride=stride), nn.BatchNorm2d(c_out))
        self.shortcut = nn.Identity() if same else nn.Sequential(*short)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet-14 in small: three stages of two blocks, 4, 6 and 8 channels wide; wider ones lose nothing to rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = _conv(1, 4), nn.BatchNorm2d(4), nn.ReLU()
        stages = ((4, 4, 1), (4, 6, 2), (6, 8, 2))
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(BasicBlock(c_in, c_out, stride=stride), BasicBlock(c_out, c_out, stride=1))
            for c_in, c_out, stride in stages
        )
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x))))))
        return self.fc(torch.flatten(self.pool(x), 1))


class MobileNet(nn.Module):
    """MobileNetV1 in small: depthwise and 1x1 convolutions in turn, ReLU6 behind each (arXiv 1704.04861)."""

    BLOCKS = ((6, 1), (8, 2), (8, 1), (10, 2), (10, 1), (12, 1))  # C_out, stride

    def __init__(self) -> None:
        super().__init__()
        width, blocks = 8, [_conv_bn_relu6(1, 8)]
        for c_out, stride in self.BLOCKS:
            blocks.append(_conv_bn_relu6(width, width, stride=stride, groups=width))
            blocks.append(_conv_bn_relu6(width, c_out, kernel=1))
            width = c_out
        self.features = nn.Sequential(*blocks)
        self.pool, self.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))


def _conv(c_in: int, c_out: int, *, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def _conv_bn_relu6(c_in: int, c_out: int, *, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = _conv(c_in, c_out, kernel=kernel, stride=stride, groups=groups)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU6())


@dataclass(frozen=True)
class Training:
    """What is trained, and for how long at which peak learning rate (Adam)."""

    build: type[nn.Module]
    epochs: int
    learning_rate: float


NETWORKS = {"resnet_digits": Training(ResNet, 30, 0.03), "mobilenet_digits": Training(MobileNet, 40, 0.03)}
NUM_IMAGES = 596 - NUM_CALIBRATION  # evaluated on


def load(name: str, *, cache: Path | None = None) -> nn.Module:
    """Build the trained network, in eval mode; train it where the cache does not hold it yet.

    Args:
        name: one of NETWORKS.
        cache: folder of the weights; None = a folder beside other temporary files, kept between runs.

    Raises:
        ValueError: no such network.
    """
    training = _training(name)
    path = (cache or Path(tempfile.gettempdir()) / "datafree-digits") / f"{name}-{_version()}.safetensors"
    if not path.exists():
        trained = train(training, *digits("train"))
        with atomic_write(path) as place:
            safetensors.torch.save_file(trained.state_dict(), place)
    with torch.random.fork_rng(devices=[]):
        model = training.build()
    model.load_state_dict(safetensors.torch.load_file(path))
    return model.eval()


def images(name: str, n: int | None = None) -> tuple[Tensor, Tensor]:
    """The first `n` held-out digits for a network: (n, 1, 16, 16) as it sees them, (n,) int64; None = all 596.

    Raises:
        ValueError: no such network.
    """
    _training(name)
    x, y = digits("test")
    order = torch.randperm(
        len(x), generator=torch.Generator().manual_seed(0)
    )  # the data set goes from writer to writer
    return x[order][:n], y[order][:n]


def _training(name: str) -> Training:
    if name not in NETWORKS:
        raise ValueError(f"there is no network {name!r} trained on digits; there are {', '.join(NETWORKS)}")
    return NETWORKS[name]


def _version() -> str:
    """What decides the weights, as part of a file name: this file and PyTorch."""
    return f"{zlib.crc32(Path(__file__).read_bytes()):08x}-{torch.__version__}"


def train(training: Training, x: Tensor, y: Tensor) -> nn.Module:
    """Train a fresh network on augmented digits, on one thread; the global random state is left as found."""
    generator = torch.Generator().manual_seed(SEED)
    with one_thread(), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = training.build()
        optimizer = torch.optim.Adam(model.parameters())
        num_steps = training.epochs * (len(x) // BATCH_SIZE)
        for step in range(num_steps):
            rows = torch.randint(len(x), (BATCH_SIZE,), generator=generator)
            optimizer.param_groups[0]["lr"] = training.learning_rate * _schedule((step + 1) / num_steps)
            optimizer.zero_grad()
            F.cross_entropy(model(augmented(x[rows], generator)), y[rows]).backward()
            optimizer.step()
    return model.eval()


def _schedule(progress: float) -> float:
    """Rise linearly, then fall to 0 along a cosine; progress in (0, 1]."""
    if progress <= WARM_UP:
        return progress / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, zoom and shift each image (N, 1, H, W) a little; what comes in from outside is background."""
    angle, zoom, right, down = (torch.rand(4, len(x), generator=generator) * 2 - 1).unbind()
    angle, zoom = angle * math.radians(ROTATION), 1 + zoom * ZOOM
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    rows = torch.stack([cos, -sin, right * SHIFT], 1), torch.stack([sin, cos, down * SHIFT], 1)
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x - BACKGROUND, grid, align_corners=False) + BACKGROUND


def main() -> None:
    for name in NETWORKS:
        model, (x, y) = load(name), images(name)
        with torch.no_grad():
            right = (model(x[:NUM_IMAGES]).argmax(1) == y[:NUM_IMAGES]).double().mean()
        print(f"{name}: top-1 {100 * float(right):.1f} % of {NUM_IMAGES} held-out digits")


if __name__ == "__main__":
    main()
