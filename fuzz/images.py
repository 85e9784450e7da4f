"""Images and labels: `load_unlabelled` and `load_images`. An input is a file's suffix, a line, its content."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
from PIL import Image

from fuzz import faults
from fuzz.harness import Target, fuzz, instrumented

with instrumented("numpy.lib.format", "zipfile", "PIL"):
    from datafree.images import ImagesError, load_images, load_unlabelled

SUFFIXES = (".npy", ".npz", ".png", ".jpg")


def array(x: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, x)
    return buffer.getvalue()


def archive(*, compressed: bool = False, **arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def picture(kind: str, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (9, 7)).save(buffer, kind)
    return buffer.getvalue()


def seeds() -> list[bytes]:
    pixels, floats = np.zeros((3, 9, 7, 3), np.uint8), np.zeros((3, 3, 8, 8), np.float32)
    labels = np.arange(3)
    found = [(".npy", array(pixels)), (".npy", array(floats)), (".npy", array(floats * np.nan))]
    found += [(".npz", archive(x=x, y=labels, compressed=c)) for x in (pixels, floats) for c in (False, True)]
    found += [(".npz", archive(x=np.zeros((2**11, 64, 64, 3), np.uint8), y=np.arange(2**11), compressed=True))]
    found += [(".png", picture(kind)) for kind in ("PNG", "GIF", "TIFF", "BMP", "EPS", "PPM")]
    found += [(".png", picture("PNG", mode)) for mode in ("P", "L", "RGBA", "I;16", "1")] + [(".jpg", picture("JPEG"))]
    return [suffix.encode() + b"\n" + content for suffix, content in found]


def read(data: bytes, folder: Path) -> object:
    suffix, content = split(data)
    (folder / "0").mkdir()
    path = folder / "0" / f"x{suffix}"
    path.write_bytes(content)
    if suffix in (".png", ".jpg"):
        path = folder
    if suffix != ".npy":
        for x, y in load_images(path, size=(8, 8), channels=3):
            assert len(x) == len(y)
    return load_unlabelled(path, shape=(3, 8, 8), used=None)


def split(data: bytes) -> tuple[str, bytes]:
    first, _, content = data.partition(b"\n")
    suffix = first.decode(errors="replace")
    return (suffix, content) if suffix in SUFFIXES else (".npy", data)


def fault(data: bytes, dice: random.Random) -> bytes:
    suffix, content = split(data)
    if suffix == ".npy":
        changed = faults.of_array(content, dice)
    elif suffix == ".npz":
        changed = faults.of_zip(content, dice, inside=faults.of_array)
    else:
        changed = faults.of_bytes(content, dice)
    return f"{suffix}\n".encode() + changed


TARGET = Target("images", seeds, read, (ImagesError,), fault)

if __name__ == "__main__":
    fuzz(TARGET)
