"""Images for EfficientNet-Lite0 where the folder of trained networks is not there: labelled ones, or procedural ones.

Rows say what they were measured on; those of images from here are in no table.
"""

from __future__ import annotations

import importlib.util
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from bench.networks.efficientnet_lite0 import MEAN, NUM_CLASSES, SIDE, STD
from datafree.extras import install
from datafree.images import ArchiveImages, FolderImages, ImagesError, load_images
from datafree.records import NATURAL_MEAN, NATURAL_STD
from datafree.signals.probes import dead_leaves

NUM_PROCEDURAL = 500
SEED = 1000  # of procedural images; no bench compresses with it
ORDER = 0  # seed of the order in which labelled images are taken: folders go from class to class
SYNSETS = Path("data") / "_info" / "imagenet_synsets.txt"  # in timm: WordNet ids, line by line in the order of classes


@dataclass(frozen=True)
class OtherImages:
    """Images that take the place of a network's own.

    told: what they are, as rows say it.
    first: the first n images (n, 3, H, W), as the network sees them, and their labels (n,), zeros where there are none.
    """

    told: str
    count: int
    has_labels: bool
    first: Callable[[int], tuple[Tensor, Tensor]]


# ---- labelled


def labelled(path: Path) -> OtherImages:
    """Images a user has, in an order that is mixed but always the same; they are read when they are asked for.

    Args:
        path: as `datafree evaluate --data` takes it: an .npz, or a folder CLASS/*.png or *.jpg, where CLASS is an
            index of ImageNet's classes, 0 to 999, or a WordNet id.

    Raises:
        ImagesError: nothing to read, or a class that ImageNet does not have.
    """
    images = load_images(path, size=(SIDE, SIDE), channels=3, mean=MEAN, std=STD)
    labels = _labels(images, path)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(ORDER))

    def first(n: int) -> tuple[Tensor, Tensor]:
        return _read(images, order[:n]), labels[order[:n]]

    return OtherImages(f"{path.resolve().name} {_fingerprint(images, path):08x}", len(labels), True, first)


def _labels(images: FolderImages | ArchiveImages, path: Path) -> Tensor:
    labels = images.labels
    if isinstance(images, FolderImages):
        classes = [file.relative_to(path).parts[0] for file in images.files]
        known = {name: _class_index(name, path) for name in dict.fromkeys(classes)}
        labels = torch.tensor([known[name] for name in classes])
    if int(labels.max()) >= NUM_CLASSES:
        raise ImagesError(f"{path}: the label {int(labels.max())} is no class of ImageNet; labels are 0 to 999")
    return labels


def _class_index(name: str, path: Path) -> int:
    if re.fullmatch(r"[0-9]+", name):
        return int(name)
    found = _synsets().get(name) if re.fullmatch(r"n[0-9]{8}", name) else None
    if found is None:
        raise ImagesError(
            f"{path}: the folder {name!r} is no class of ImageNet; name folders 0 to 999, or by WordNet ids "
            "like n01440764"
        )
    return found


@cache
def _synsets() -> dict[str, int]:
    """Class indices by WordNet id, from timm's files; timm itself is not imported."""
    spec = importlib.util.find_spec("timm")
    file = Path(spec.origin).parent / SYNSETS if spec and spec.origin else None
    if file is None or not file.exists():
        raise ImagesError(
            "folders are named by WordNet ids, and timm, which lists them, is not there; "
            f"{install('models')}, or name folders 0 to 999"
        )
    return {name: index for index, name in enumerate(file.read_text().split())}


def _read(images: FolderImages | ArchiveImages, chosen: Tensor) -> Tensor:
    """Some of the images, in the order asked for; of an archive no more than those is kept."""
    if isinstance(images, FolderImages):
        files = tuple(images.files[i] for i in chosen.tolist())
        return torch.cat([x for x, _ in FolderImages(files, images.labels[chosen], images.pixels)])
    asked, start, kept = torch.zeros(images.num_images, dtype=torch.bool), 0, []
    asked[chosen] = True
    for x, y in images:
        kept.append(x[asked[start : start + len(y)]])
        start += len(y)
    return torch.cat(kept)[chosen.argsort().argsort()]


def _fingerprint(images: FolderImages | ArchiveImages, path: Path) -> int:
    """Tells one set of images from another: names and sizes of files, or labels and size of an archive."""
    if isinstance(images, FolderImages):
        told = "\n".join(f"{file.relative_to(path)} {file.stat().st_size}" for file in images.files)
        return zlib.crc32(told.encode())
    return zlib.crc32(images.labels.numpy().tobytes(), path.stat().st_size)


# ---- procedural


def procedural() -> OtherImages:
    """Dead leaves as 8-bit photographs would be: no one has labelled them, so they show agreement and no top-1."""
    return OtherImages(f"procedural images, seed {SEED}", NUM_PROCEDURAL, False, _first_leaves)


def _first_leaves(n: int) -> tuple[Tensor, Tensor]:
    return _leaves()[:n], torch.zeros(NUM_PROCEDURAL, dtype=torch.int64)[:n]


@cache
def _leaves() -> Tensor:
    drawn = dead_leaves(NUM_PROCEDURAL, height=SIDE, width=SIDE, generator=torch.Generator().manual_seed(SEED))
    mean, std, natural_mean, natural_std = (
        torch.tensor(v).view(-1, 1, 1) for v in (MEAN, STD, NATURAL_MEAN, NATURAL_STD)
    )
    pixels = (drawn * natural_std + natural_mean).clamp(0, 1).mul(255).round() / 255
    return (pixels - mean) / std
