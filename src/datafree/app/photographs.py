"""What a network and a file of it see on the demo's photographs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from datafree.demo import PHOTOGRAPHS, imagenet_classes, photographs
from datafree.export import run_onnx

NUM_GUESSES = 5


@dataclass(frozen=True)
class Guess:
    """A class in words, and how sure the network is, percent."""

    name: str
    percent: float


@dataclass(frozen=True)
class SeenPhotograph:
    """The best classes of one photograph, the best first."""

    name: str
    float_network: tuple[Guess, ...]
    file: tuple[Guess, ...]


def look(network: nn.Module, file: Path) -> list[SeenPhotograph]:
    """Show PHOTOGRAPHS to a network of ImageNet, in eval mode, and to an ONNX file of it."""
    x = photographs()
    with torch.no_grad():
        answers = network(x), run_onnx(file, x)[0]
    both = zip(PHOTOGRAPHS, *map(_best, answers), strict=True)
    return [SeenPhotograph(name, float_network, student) for name, float_network, student in both]


def _best(logits: Float[Tensor, "n classes"]) -> list[tuple[Guess, ...]]:
    names, best = imagenet_classes(), logits.softmax(1).topk(NUM_GUESSES)
    shares, places = (100 * best.values).tolist(), best.indices.tolist()
    return [
        tuple(Guess(names[place], share) for place, share in zip(*row, strict=True))
        for row in zip(places, shares, strict=True)
    ]
