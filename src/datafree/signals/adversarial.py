"""A generator of images, trained against a student: adversarial knowledge distillation (arXiv 2005.04136, AKD)."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, fx, nn

from datafree import graph as g
from datafree.execution import EVERY, ON_CPU, Execution, adam_state, add_layer_macs, restore_adam, save_tensors, under
from datafree.quantization import rounded_rows
from datafree.recipe import Adversarial
from datafree.records import ChannelStats, InputRange, Stats
from datafree.signals.job import SignalJob
from datafree.signals.matching import mismatch
from datafree.signals.moving import MatchingDivergedError, on_device
from datafree.signals.propagated import propagated
from datafree.signals.scale import in_range
from datafree.signals.source import Signal

NOISE = 128  # numbers an image is made from
WIDEST, NARROWEST = 64, 32  # channels of the generator
LARGEST = 2**12  # pixels of a side, and channels, in a file
SMALLEST = 8  # pixels of the first map's shorter side, about

Logits = Callable[[Tensor], Tensor]


class Generator(nn.Module):
    """Noise (N, 128) to unit-variance images (N, C, H, W): linear, then upsampling and 3x3 convolutions.

    A DCGAN in small, as AKD and DAFL use (arXiv 1904.01186); sizes are ours.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = shape
        self.image_shape = shape
        num = max(1, round(math.log2(max(2, min(height, width) / SMALLEST))))
        self.sizes = [(math.ceil(height / 2**i), math.ceil(width / 2**i)) for i in range(num, -1, -1)]
        self.linear = nn.Linear(NOISE, WIDEST * self.sizes[0][0] * self.sizes[0][1])
        self.norm = nn.BatchNorm2d(WIDEST)
        widths = [WIDEST] * num + [NARROWEST]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for b in widths[1:])
        self.to_image = nn.Conv2d(NARROWEST, channels, 3, padding=1)
        self.to_unit = nn.BatchNorm2d(channels, affine=False)

    def forward(self, noise: Float[Tensor, "n z"]) -> Float[Tensor, "n c h w"]:
        x = self.norm(_counted(self.linear, noise).view(len(noise), WIDEST, *self.sizes[0]))
        for conv, norm, size in zip(self.convs, self.norms, self.sizes[1:], strict=True):
            x = F.interpolate(x, size=size)
            x = F.leaky_relu(norm(_counted(conv, x)), 0.2)
        return self.to_unit(_counted(self.to_image, x))

    def noise(self, count: int, rng: torch.Generator) -> Float[Tensor, "n z"]:
        """What `count` images are made from."""
        return torch.randn(count, NOISE, generator=rng)

    def save(self, path: str | Path) -> None:
        """Write weights and image shape."""
        tensors = {k: v.contiguous() for k, v in self.state_dict().items()}
        save_tensors(tensors, Path(path), {"shape": json.dumps(self.image_shape)})

    @classmethod
    def load(cls, path: str | Path) -> Generator:
        """Read what `save` wrote, in eval mode."""
        with safe_open(path, "pt") as file:
            shape = tuple(json.loads(file.metadata()["shape"]))
        if len(shape) != 3 or not all(isinstance(side, int) and 0 < side <= LARGEST for side in shape):
            raise ValueError(f"{shape} is no shape of images (C, H, W)")
        made = cls(shape)
        made.load_state_dict(safetensors.torch.load_file(path))
        return made.eval()


def _counted(module: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(module, nn.Linear | nn.Conv2d), "what is counted has a weight"
    y = module(x)
    add_layer_macs(y.numel() * module.weight[0].numel(), x, module.weight, y)
    return y


@dataclass
class Adversary:
    """A generator under training, with all it is trained on. `generator`, `optimizer` and `rng` change."""

    teacher: fx.GraphModule
    stats: Stats
    method: Adversarial
    input_range: InputRange
    generator: Generator
    optimizer: torch.optim.Optimizer
    rng: torch.Generator
    device: str = "cpu"

    def images(self, count: int) -> Float[Tensor, "n c h w"]:
        """New images as the network sees them, with their gradient to the generator where one is wanted."""
        noise = self.generator.noise(count, self.rng).to(self.device)
        return in_range(self.generator(noise), self.input_range)

    def step(self, student: Logits | None) -> Float[Tensor, "n c h w"]:
        """Move the generator once; returns the images it was moved on, detached.

        Minimise  statistics KL(batch || BatchNorm) + mean H(p(x)) - H(mean p(x)) - rivalry KL(teacher || student)

        (AKD, eq. 5-8): images the teacher is sure of, of all classes, like those BatchNorm remembers, on which the
        student is wrong. Without `student` the last term is left out: the warm-up.
        """
        method = self.method
        with torch.enable_grad():
            x = self.images(method.batch)
            distance, logits = mismatch(self.teacher, self.stats, x, gaussian_divergence)
            loss = method.statistics * distance
            if logits is not None:
                log_p = F.log_softmax(logits, 1)
                p = log_p.exp()
                mean = p.mean(0)
                loss = loss - (p * log_p).sum(1).mean() + (mean * mean.clamp(min=1e-12).log()).sum()
                if student is not None:
                    loss = loss - method.rivalry * F.kl_div(F.log_softmax(student(x), 1), p, reduction="batchmean")
            self.optimizer.zero_grad()
            loss.backward()
        if not bool(torch.isfinite(loss)):
            raise MatchingDivergedError(
                f"training the generator: the loss is {float(loss.detach())}; lower signal.lr (now {method.lr:g}) or "
                f"signal.rivalry (now {method.rivalry:g})"
            )
        self.optimizer.step()
        return x.detach()

    def state(self) -> dict[str, Tensor]:
        """Everything that changes, for a checkpoint."""
        weights = {f"generator.{k}": v for k, v in self.generator.state_dict().items()}
        return {**weights, **adam_state(self.optimizer), "rng": self.rng.get_state()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go back to what `state` returned."""
        self.generator.load_state_dict(under("generator.", tensors))
        restore_adam(self.optimizer, tensors)
        self.rng.set_state(tensors["rng"])


def new_adversary(
    teacher: fx.GraphModule,
    stats: Stats,
    method: Adversarial,
    *,
    input_range: InputRange,
    rng: torch.Generator,
    device: str = "cpu",
) -> Adversary:
    """An untrained generator for a network of one image input (C, H, W)."""
    teacher, stats = on_device(teacher, stats, device)
    _, channels, height, width = g.shape(g.placeholders(teacher)[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=rng)))
        generator = Generator((channels, height, width)).to(device).train()
    optimizer = torch.optim.Adam(generator.parameters(), lr=method.lr)
    return Adversary(teacher, stats, method, input_range, generator, optimizer, rng, device)


def train(
    teacher: fx.GraphModule,
    stats: Stats,
    method: Adversarial,
    *,
    input_range: InputRange,
    generator: torch.Generator,
    work: Execution = ON_CPU,
) -> Generator:
    """Train a generator against the teacher rounded to nearest at `rival_bits`; returns it in eval mode, on the CPU.

    As a signal there is no student yet; in distillation (`distill.images: adversarial`) the real one takes its place.
    """
    adversary = new_adversary(teacher, stats, method, input_range=input_range, rng=generator, device=work.device)
    rival = rounded(adversary.teacher, method.rival_bits)
    kept = work.checkpoints.read("generator")
    start = 0
    if kept is not None:
        adversary.restore(kept)
        start = work.checkpoints.record("generator")["step"]
    for step in range(start, method.steps):
        adversary.step(rival if step >= method.warmup else None)
        work.on_step("training the generator", step + 1, method.steps)
        if (step + 1) % EVERY == 0 or step + 1 == method.steps:
            work.checkpoints.write("generator", adversary.state(), {"step": step + 1})
    return adversary.generator.eval().cpu()


def generated_images(job: SignalJob) -> Signal:
    """Images of a generator trained for this network; procedural ones where there is nothing to train it on."""
    assert isinstance(job.recipe, Adversarial), "the table calls this for its own kind"
    plain = propagated(job)
    hindrance = job.hindrance or ("the network's input is no image" if job.unit[0].dim() != 4 else "")
    if hindrance:
        return replace(plain, unmoved=hindrance)
    known = job.ranges[0]
    network = train(job.teacher, job.stats, job.recipe, input_range=known, generator=job.rng, work=job.work)
    with torch.no_grad():
        images = network(network.noise(len(job.unit[0]), job.rng))
    return replace(plain, inputs=(in_range(images, known),), generator=network)


def rounded(teacher: fx.GraphModule, bits: int) -> fx.GraphModule:
    """The float graph with every layer's weights rounded to nearest, one scale an output channel."""

    weights = {name: g.weight(teacher, layer).flatten(1) for name, layer in g.layers(teacher).items()}
    return g.with_weights(teacher, {name: rounded_rows(weight, bits) for name, weight in weights.items()})


def gaussian_divergence(mean: Tensor, std: Tensor, wanted: ChannelStats) -> Tensor:
    """KL of one Gaussian a channel from the one BatchNorm remembers, mean over channels (AKD, eq. 6)."""
    floor = 1e-2 * wanted.std.square().mean()
    ratio = (std.square() + floor) / (wanted.std.square() + floor)
    return (0.5 * (ratio + (mean - wanted.mean).square() / (wanted.std.square() + floor) - 1 - ratio.log())).mean()
