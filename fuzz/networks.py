"""Small networks that seeds are made of."""

from __future__ import annotations

import functools

import torch
from torch import nn

from datafree.pipeline import compress
from datafree.recipe import Recipe
from datafree.run import Run

SHAPE = (1, 3, 8, 8)


class Residual(nn.Module):
    """Two convolutions with BatchNorm, a sum, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.last = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.last((x + torch.relu(self.second(x))).mean((2, 3)))


def network() -> tuple[nn.Module, torch.Tensor]:
    """What `load_model("fuzz.networks:network")` calls."""
    torch.manual_seed(0)
    return Residual().eval(), torch.zeros(SHAPE)


@functools.cache
def run() -> Run:
    model, example = network()
    settings = ["signal.kind=inverted", "signal.steps=2", "signal.images=4", "prune.sparsity=0.5"]
    return compress(model, Recipe.preset("w4a8").updated(settings), example, progress=False)
