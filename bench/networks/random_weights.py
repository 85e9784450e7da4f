"""Networks of any size with random weights, for time and memory alone."""

from __future__ import annotations

import torch
from torch import nn

from datafree import load_model


@torch.no_grad()
def random_network(name: str, *, images: int, side: int) -> nn.Module:
    """Random weights, the same each time; every BatchNorm remembers one batch of noise, of so many images."""
    torch.manual_seed(0)
    model, _ = load_model(name)
    norms = [module for module in model.eval().modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train().momentum = 1.0
    if norms:
        model(torch.randn(images, 3, side, side))
    return model.eval()
