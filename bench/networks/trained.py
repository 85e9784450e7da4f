"""The trained networks the benches measure on, and where each comes from."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from bench.networks import digits, efficientnet_lite0
from bench.networks.other_images import OtherImages, labelled, procedural
from datafree.app.allocator import keep_freed_memory
from datafree.images import ImagesError

LITE = efficientnet_lite0.NAME
ZOO = {  # name -> images evaluated on; the first one needs no folder, only its packages
    LITE: 872, "resnet20_cifar10": 3872, "mobilenetv1_025_imagenet": 872, "mobilenetv2_tiny200": 1000,
    "resnet8_cifar10": 3872, "mobilenetv1_025_vww": 372,
}  # fmt: skip
DIGITS = {"resnet_digits": 468, "mobilenet_digits": 468}  # trained here in seconds, see digits.py
NETWORKS = {**ZOO, **DIGITS}
SIDE = {  # name -> pixels of an image's side
    LITE: efficientnet_lite0.SIDE, "resnet20_cifar10": 32, "mobilenetv1_025_imagenet": 224, "mobilenetv2_tiny200": 128,
    "resnet8_cifar10": 32, "mobilenetv1_025_vww": 96, "resnet_digits": 16, "mobilenet_digits": 16,
}  # fmt: skip
SPARE = {**dict.fromkeys(NETWORKS, 128), "mobilenetv2_tiny200": 1000}  # images never evaluated on
PACKAGES = {LITE: efficientnet_lite0.PACKAGES}


@dataclass(frozen=True)
class Networks:
    """Where every network asked for comes from, and images that take the place of a network's own."""

    sources: Mapping[str, Any]
    instead: Mapping[str, OtherImages] = field(default_factory=dict)

    def load(self, name: str) -> nn.Module:
        return self.sources[name].load(name)

    def images(self, name: str, n: int | None = None) -> tuple[Tensor, Tensor]:
        """The first `n` images and labels; None = all, of other images as many as a network of ours has."""
        if name in self.instead:
            return self.instead[name].first(NETWORKS[name] + SPARE[name] if n is None else n)
        return self.sources[name].images(name, n)

    def num_images(self, name: str, most: int | None = None) -> int:
        """How many images a network is evaluated on; at most `most`, which of other images may be more than usual."""
        if name in self.instead:
            return min(most or NETWORKS[name], self.instead[name].count)
        return min(most or NETWORKS[name], NETWORKS[name])

    def measured_on(self, name: str) -> str:
        """What images take the place of its own; "" where none do."""
        return self.instead[name].told if name in self.instead else ""

    def has_labels(self, name: str) -> bool:
        return name not in self.instead or self.instead[name].has_labels

    def has_spare(self, name: str, evaluated: int) -> bool:
        """Whether there are as many images beside those evaluated on as a bench's reference rows draw from."""
        own = NETWORKS[name]
        return name not in self.instead or (evaluated <= own and self.instead[name].count >= own + SPARE[name])


def open_networks(options: argparse.Namespace) -> Networks:
    """The networks asked for: EfficientNet-Lite0 from its packages, digits trained here, others from the zoo.

    Those that cannot be had are taken from `options.networks`, and a line says why. Images of EfficientNet-Lite0 are
    those of --data, or the zoo's, or procedural where there is no zoo.
    """
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the command line does
    options.out.mkdir(parents=True, exist_ok=True)
    zoo = _open_zoo(options.zoo) if set(options.networks) - set(DIGITS) else None
    reasons = {name: _missing(name, zoo, options) for name in options.networks}
    for reason in dict.fromkeys(filter(None, reasons.values())):
        print(f"skipped: {', '.join(name for name in reasons if reasons[name] == reason)}: {reason}", flush=True)
    options.networks = [name for name, reason in reasons.items() if not reason]
    sources = {name: digits if name in DIGITS else zoo or efficientnet_lite0 for name in options.networks}
    return Networks(sources, _instead(options, zoo))


def _missing(name: str, zoo: ModuleType | None, options: argparse.Namespace) -> str:
    """Why a network cannot be measured; "" where it can."""
    packages = [package for package in PACKAGES.get(name, ()) if importlib.util.find_spec(package) is None]
    if packages:
        return f"needs {', '.join(packages)}; make bench-networks installs it"
    if options.data and name != LITE:
        return f"--data gives images to {LITE} alone"
    if name not in (LITE, *DIGITS) and zoo is None:
        return f"{options.zoo} holds no zoo.py; give the folder of the networks with --zoo"
    return ""


def _instead(options: argparse.Namespace, zoo: ModuleType | None) -> dict[str, OtherImages]:
    """Images for EfficientNet-Lite0 that are not the zoo's, and a line that says which; none where it has those."""
    if LITE not in options.networks or (zoo and not options.data):
        return {}
    try:
        images = labelled(options.data) if options.data else procedural()
    except ImagesError as error:
        sys.exit(f"--data: {error}")
    if images.has_labels:
        print(f"{LITE}: on {images.told}, {images.count} images; such rows are in no table", flush=True)
    else:
        print(
            f"{LITE}: no --data and no folder of trained networks, so students are compared with the float network on "
            f"{images.told}: agreement alone, what top-1 loses is not known; such rows are in no table",
            flush=True,
        )
    return {LITE: images}


def _open_zoo(folder: Path) -> ModuleType | None:
    """The zoo's `load(name)` and `images(name)`; None where the folder does not hold it."""
    if not (folder / "zoo.py").is_file():
        return None
    spec = importlib.util.spec_from_file_location("trained_networks", folder / "zoo.py")
    assert spec is not None and spec.loader is not None, "a Python file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
