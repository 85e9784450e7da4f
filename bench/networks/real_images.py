"""Real images for the rows that are a reference: the same solver with data, as many images as ours makes and more.

They are drawn, by seed, from images that are never evaluated on. Where all of them are taken there is one draw only.
For `mobilenetv2_tiny200` there are photographs too: its BatchNorm saw sharp ones, its own images are small ones scaled
up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.networks.trained import NETWORKS, SIDE, SPARE, Networks
from datafree.signals import num_images

PHOTOGRAPHS = {"mobilenetv2_tiny200": 1000}
SHARP = "mobilenetv1_025_imagenet"  # whose images the photographs are


@dataclass(frozen=True)
class Real:
    """Which real images, how many, and whether they are re-standardised as ours are or kept as they are."""

    kind: str  # "real" or "photographs"
    count: int | None  # None: as many as `inverted` makes
    restandardised: bool

    @property
    def name(self) -> str:
        number = "as many" if self.count is None else str(self.count)
        return f"{self.kind}, {number}" + (", re-standardised" if self.restandardised else "")

    @property
    def settings(self) -> tuple[str, ...]:
        kept = ("signal.kind=loader",)
        return (*kept, "signal.restandardise=true") if self.restandardised else kept

    def number(self, network: str) -> int:
        return self.count or as_many(network)

    def is_all(self, network: str) -> bool:
        """Whether every draw is the same."""
        return self.number(network) == self._there_are(network)

    def missing(self, network: str) -> str:
        """Why there is no such row; "" where there is one."""
        there_are = self._there_are(network)
        if not there_are:
            return "drawn only where the network's own images are unlike those it was trained on"
        if self.number(network) > there_are:
            return f"only {there_are} images are never evaluated on"
        if self.count == as_many(network):
            return f"ours makes {self.count} images here: the same row as {Real(self.kind, None, False).name}"
        return ""

    def draw(self, zoo: Networks, network: str, *, seed: int) -> Tensor:
        """The images, (N, C, H, W)."""
        pool = photographs(zoo) if self.kind == "photographs" else zoo.images(network)[0][NETWORKS[network] :]
        if self.is_all(network):
            return pool
        return pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[: self.number(network)]]

    def _there_are(self, network: str) -> int:
        return (PHOTOGRAPHS if self.kind == "photographs" else SPARE).get(network, 0)


def as_many(network: str) -> int:
    """How many images `inverted` makes for a network."""
    return num_images((3, SIDE[network], SIDE[network]), most=128)


def photographs(zoo: Networks) -> Tensor:
    """Photographs at 128 pixels, as mobilenetv2_tiny200 sees them."""
    module = zoo.sources["mobilenetv2_tiny200"]
    pixels = (module.images(SHARP)[0] + 1) * 127.5  # [-1, 1] -> [0, 255]
    return module.preprocess(pixels.permute(0, 2, 3, 1), "torch", SIDE["mobilenetv2_tiny200"])


REFERENCES = {
    real.name: real
    for kind, counts in (("real", (None, 128, 512)), ("photographs", (None, 128)))
    for count in counts
    for real in (Real(kind, count, False), Real(kind, count, True))
}
AS_MANY = tuple(name for name, real in REFERENCES.items() if real.kind == "real" and real.count is None)
