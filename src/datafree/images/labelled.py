"""Labelled images from disk, for evaluation only: compression never sees them."""

from __future__ import annotations

import math
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from datafree.execution import most_bytes
from datafree.extras import install
from datafree.messages import LineError

BATCH_SIZE = 100
SUFFIXES = {".png", ".jpg", ".jpeg"}
FORMATS = ("PNG", "JPEG")  # whatever a file is called: Pillow starts Ghostscript for others
_MODES = {1: "L", 3: "RGB"}

Batches = Iterator[tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"]]]


class ImagesError(LineError):
    """Images or labels that cannot be read, or that do not fit the network."""


@dataclass(frozen=True)
class Pixels:
    """How 8-bit pixels become a network's input: resize to (H, W), divide by 255, then (x - mean) / std.

    `mean` and `std` hold one entry a channel, in units of pixels in 0..1; None leaves the pixels in 0..1.
    """

    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise ImagesError("mean and std go together: give both, or neither for pixels in 0..1")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.channels:
                raise ImagesError(f"{name} has {len(values)} values; give one for each of {self.channels} channels")
        if self.std is not None and min(self.std) <= 0:
            raise ImagesError(f"std is {self.std}; every value must be above 0, in units of pixels in 0..1")

    def to_input(self, pixels: UInt8[np.ndarray, "n h w c"]) -> Float[Tensor, "n c h2 w2"]:
        """Resize (bilinear, anti-aliased, the aspect ratio is not kept) and normalise."""
        if pixels.shape[1:3] != self.size:
            pixels = np.stack([_resize(image, size=self.size) for image in pixels])
        x = torch.tensor(pixels).permute(0, 3, 1, 2).float() / 255
        if self.mean is None or self.std is None:
            return x
        return (x - torch.tensor(self.mean).view(-1, 1, 1)) / torch.tensor(self.std).view(-1, 1, 1)


@dataclass(frozen=True)
class FolderImages:
    """Image files and their class indices; read again, batch by batch, at every iteration."""

    files: tuple[Path, ...]
    labels: Int[Tensor, " n"]
    pixels: Pixels

    @property
    def num_images(self) -> int:
        return len(self.files)

    def __iter__(self) -> Batches:
        for start in range(0, self.num_images, BATCH_SIZE):
            files = self.files[start : start + BATCH_SIZE]
            inputs = [self.pixels.to_input(read_pixels(file, channels=self.pixels.channels)) for file in files]
            yield torch.cat(inputs), self.labels[start : start + BATCH_SIZE]


@dataclass(frozen=True)
class ArchiveImages:
    """Arrays `x` and `y` of an .npz file; `x` is streamed batch by batch, at every iteration anew."""

    path: Path
    labels: Int[Tensor, " n"]
    pixels: Pixels

    @property
    def num_images(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Batches:
        with _open_array(self.path, "x") as (file, shape, dtype):
            for labels in self.labels.split(BATCH_SIZE):
                x = _read_rows(file, (len(labels), *shape[1:]), dtype, path=self.path)
                yield as_input(x, self.pixels, self.path), labels


def load_images(
    path: str | Path,
    *,
    size: tuple[int, int],
    channels: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> FolderImages | ArchiveImages:
    """Open labelled images; what is returned yields (x (n, C, H, W) float32, y (n,) int64), n <= 100, lazily.

    Everything that can be checked without reading pixels is checked here, before the first batch.

    Args:
        path: a folder `CLASS/*.png` or `*.jpg` (any depth below CLASS), labels are the positions in the
            sorted class names, or the names themselves where all are integers; or an .npz with `y` (N,)
            integers and `x`, either (N, H, W, C) uint8 pixels or (N, C, H, W) float, preprocessed and used
            as it is.
        size: (H, W) of the network's input; pixels of another size are resized, bilinear.
        channels: C of the network's input; files are converted to grey for 1 and to RGB for 3.
        mean: per channel, in units of pixels in 0..1; None leaves pixels in 0..1. Not applied to float `x`.
        std: per channel, as `mean`.

    Raises:
        ImagesError: no such path, no images, an unreadable file (while iterating), arrays of a wrong shape or
            kind, a negative label, or `mean` and `std` that do not fit `channels`.
    """
    path = Path(path)
    pixels = Pixels(
        size=(size[0], size[1]),
        channels=channels,
        mean=None if mean is None else tuple(map(float, mean)),
        std=None if std is None else tuple(map(float, std)),
    )
    if path.is_dir():
        return _open_folder(path, pixels)
    if not path.exists():
        raise ImagesError(f"images {path} do not exist; give a folder of CLASS/*.png or an .npz with x and y")
    if path.suffix != ".npz":
        raise ImagesError(f"images {path} are neither a folder nor .npz; give a folder of CLASS/*.png or an .npz")
    return _open_archive(path, pixels)


def _open_folder(path: Path, pixels: Pixels) -> FolderImages:
    if pixels.channels not in _MODES:
        raise ImagesError(
            f"image files have 1 or 3 channels, the network takes {pixels.channels}; give an .npz instead"
        )
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    numbered = all(re.fullmatch(r"-?[0-9]+", folder.name) for folder in folders)
    files: list[Path] = []
    labels: list[int] = []
    for position, folder in enumerate(folders):
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        files += found
        labels += [int(folder.name) if numbered else position] * len(found)
    if not files:
        raise ImagesError(f"{path} holds no images; expected {path}/CLASS/*.png or *.jpg, one folder a class")
    return FolderImages(tuple(files), _as_labels(np.array(labels), path=path), pixels)


def _open_archive(path: Path, pixels: Pixels) -> ArchiveImages:
    check_unpacked(path)
    with reading(path), path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        names = arrays.files
        y = arrays["y"] if "y" in names else None
    if not isinstance(y, np.ndarray) or "x" not in names:
        raise ImagesError(f"{path} holds the arrays {', '.join(names) or 'none'}; expected x and y")
    with _open_array(path, "x") as (_, shape, dtype):
        check_x(shape, dtype, pixels=pixels, path=path)
    labels = _as_labels(y, path=path)
    if len(labels) != shape[0]:
        raise ImagesError(f"{path} holds {shape[0]} images and {len(labels)} labels; expected one label an image")
    if not len(labels):
        raise ImagesError(f"{path} holds no images; x is {shape}")
    return ArchiveImages(path, labels, pixels)


def check_x(shape: tuple[int, ...], dtype: np.dtype[Any], *, pixels: Pixels, path: Path) -> None:
    if len(shape) != 4 or not (dtype == np.uint8 or dtype.kind == "f"):
        raise ImagesError(f"{path}: x is {dtype} {shape}; expected uint8 (N, H, W, C) or float (N, C, H, W)")
    layout, found = ("(N, H, W, C)", shape[3]) if dtype == np.uint8 else ("(N, C, H, W)", shape[1])
    if found != pixels.channels:
        raise ImagesError(
            f"{path}: x is {dtype} {shape}, read as {layout} with {found} channels; the network takes "
            f"{pixels.channels}; transpose or convert x"
        )
    if dtype != np.uint8 and shape[2:] != pixels.size:
        raise ImagesError(
            f"{path}: x is {dtype} {shape}, used as it is, but the network takes {pixels.size} (H, W); "
            "resize x, or give uint8 (N, H, W, C), which is resized here"
        )


def as_input(x: np.ndarray, pixels: Pixels, path: Path) -> Float[Tensor, "n c h w"]:
    """Images of an array as the network sees them.

    Raises:
        ImagesError: floats that are NaN or infinite, or no float32.
    """
    if x.dtype == np.uint8:
        return pixels.to_input(x)
    with np.errstate(over="ignore"):
        found = torch.from_numpy(x.astype(np.float32))
    if bad := int((~torch.isfinite(found)).sum()):
        raise ImagesError(f"{path}: images hold {bad} of {found.numel()} values that are NaN or inf; write finite ones")
    return found


def check_unpacked(path: Path) -> None:
    """Refuse an .npz that unpacks to more than a file of its size may.

    Raises:
        ImagesError: it does, or is none; says how many bytes are allowed.
    """
    with reading(path), zipfile.ZipFile(path) as archive:
        total, most = sum(member.file_size for member in archive.infolist()), most_bytes(path.stat().st_size)
    if total > most:
        raise ImagesError(
            f"{path} unpacks to {total} bytes; {most} are allowed for a file of its size: give fewer images in a file"
        )


def _as_labels(labels: np.ndarray, *, path: Path) -> Int[Tensor, " n"]:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ImagesError(f"{path}: y is {labels.dtype} {labels.shape}; expected integer class indices (N,)")
    if len(labels) and labels.min() < 0:
        raise ImagesError(f"{path}: the label {labels.min()} is negative; expected class indices from 0")
    return torch.from_numpy(labels.astype(np.int64))


def read_pixels(file: Path, *, channels: int) -> UInt8[np.ndarray, "1 h w c"]:
    image_module = _pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a size that is checked here
            with image_module.open(file, formats=FORMATS) as image:
                mode = image.mode
                _check_size(image.size, file)
                pixels = np.asarray(image.convert(_MODES[channels]))
    except ImagesError:
        raise
    except Exception as error:  # Pillow raises anything from SyntaxError to struct.error on broken chunks
        cause = str(error) or type(error).__name__
        raise ImagesError(f"{file} cannot be read as an image ({cause}); replace or remove it") from error
    if mode.startswith(("I", "F")):  # Pillow clips these to 0..255 without a word
        raise ImagesError(f"{file} has more than 8 bits a pixel (mode {mode}); save it with 8 bits a channel")
    return pixels.reshape(1, *pixels.shape[:2], channels)


def _check_size(size: tuple[int, int], file: Path) -> None:
    """Before any pixel is unpacked."""
    most = most_bytes(file.stat().st_size) // 4
    if math.prod(size) > most:
        raise ImagesError(
            f"{file} has {size[0]} x {size[1]} pixels; {most} are allowed for a file of its size: make it smaller"
        )


def _resize(image: UInt8[np.ndarray, "h w c"], *, size: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2 c"]:
    image_module = _pillow()
    planes = [image_module.fromarray(np.ascontiguousarray(image[..., c])) for c in range(image.shape[-1])]
    bilinear = image_module.Resampling.BILINEAR
    return np.stack([np.asarray(plane.resize((size[1], size[0]), bilinear)) for plane in planes], axis=-1)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ImagesError(f"reading or resizing images needs Pillow; {install('models')}") from error
    return Image


@contextmanager
def _open_array(path: Path, name: str) -> Iterator[tuple[Any, tuple[int, ...], np.dtype[Any]]]:
    """One array of an .npz: a file at its first value, so that batches can be read one after the other."""
    with ExitStack() as stack:
        with reading(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            file = stack.enter_context(archive.open(f"{name}.npy"))
            npy = np.lib.format
            read_header = {(1, 0): npy.read_array_header_1_0}.get(npy.read_magic(file), npy.read_array_header_2_0)
            shape, fortran_order, dtype = read_header(file)
        if min(shape, default=0) < 0:
            raise ImagesError(f"{path}: {name} is {shape}; no side of an array is below 0: write it again")
        if fortran_order:
            raise ImagesError(f"{path}: {name} is in Fortran order; save np.ascontiguousarray({name})")
        yield file, shape, dtype


def _read_rows(file: Any, shape: tuple[int, ...], dtype: np.dtype[Any], *, path: Path) -> np.ndarray:
    with reading(path):
        raw = file.read(math.prod(shape) * dtype.itemsize)
        return np.frombuffer(raw, dtype=dtype).reshape(shape)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged zip raises anything from BadZipFile to zlib.error and struct.error
        cause = " ".join(str(error).split())[:200]
        raise ImagesError(f"{path} cannot be read ({cause}); write it again with np.savez(path, x=x, y=y)") from error
