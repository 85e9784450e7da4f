"""Compress the digits network to 3 bits without data, then train that student on labelled digits.

    python examples/qat_digits.py                 # w3a3, 30 epochs: about a minute on one core
    python examples/qat_digits.py --recipe w2a4.yaml --epochs 60 --out trained

Any loop will do: `run.trainable()` is an nn.Module with float weights and learnable scales, `freeze()` brings it back
to integers. Labels are those of the training digits; what is printed is of the 596 held out.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree import Run, compress, evaluate, load_model
from datafree.demo import digits

BATCH_SIZE = 64


def train(module: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, rate: float, seed: int) -> None:
    """Adam on the cross entropy, with a rate that falls to 0 along a cosine."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(images) // BATCH_SIZE))
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=generator).split(BATCH_SIZE):
            loss = F.cross_entropy(module(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def tell(what: str, run: Run) -> None:
    """Top-1 on the digits held out."""
    found = evaluate(run, digits("test"))
    print(
        f"{what}: top-1 {found.top1:.1f} ± {found.top1_error:.1f} % of {found.num_images}, float {found.float_top1:.1f}"
    )


def main(arguments: list[str] | None = None) -> None:
    """Compress, train, freeze, and print top-1 before and after."""
    parser = argparse.ArgumentParser(description="Train a compressed digits network.")
    parser.add_argument("--recipe", default="w3a3", help="a preset, or a .yaml file")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--rate", type=float, default=1e-2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="a directory for the trained run")
    options = parser.parse_args(arguments)
    model, example = load_model("demo")
    run = compress(model, options.recipe, example, seed=options.seed)
    tell(f"{options.recipe}, without data", run)
    module = run.trainable()
    train(module, *digits("train"), epochs=options.epochs, rate=options.rate, seed=options.seed)
    trained = module.freeze()
    tell(f"{options.recipe}, trained {options.epochs} epochs", trained)
    if options.out:
        trained.save(options.out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
