"""Images of text that is known, rendered here: lines by themselves, and pages with several lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LETTERS = (
    "abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789"  # none that look alike in these fonts: I l 1, O o 0
)
DEJAVU = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono", "DejaVuSans-Oblique")
NOISE = 8.0  # largest standard deviation of noise, in levels of 0..255
Pixels = np.ndarray
"""Of an image (H, W, 3), uint8, as OpenCV has it: blue first."""


@dataclass(frozen=True)
class Line:
    """What is written, and where: left, top, right, bottom in pixels."""

    text: str
    box: tuple[float, float, float, float]


def lines(count: int, *, seed: int) -> list[tuple[Pixels, str]]:
    """Images of one line each: one to three words of any size, place, font, colours and noise."""
    rng = np.random.default_rng(seed)
    return [_line(rng) for _ in range(count)]


def pages(count: int, *, seed: int) -> list[tuple[Pixels, list[Line]]]:
    """Images of 400 to 900 pixels a side with lines of one to four words that do not touch."""
    rng = np.random.default_rng(seed)
    return [_page(rng) for _ in range(count)]


def _line(rng: np.random.Generator) -> tuple[Pixels, str]:
    text, font = _words(rng, 3), _font(rng, int(rng.integers(18, 49)))
    left, top, right, bottom = font.getbbox(text)
    margins = rng.uniform(0.1, 0.4, 4) * (bottom - top)
    size = (int(right - left + margins[0] + margins[1]), int(bottom - top + margins[2] + margins[3]))
    paper, ink = _colours(rng)
    image = Image.new("RGB", size, paper)
    ImageDraw.Draw(image).text((margins[0] - left, margins[2] - top), text, font=font, fill=ink)
    return _noisy(rng, image), text


def _page(rng: np.random.Generator) -> tuple[Pixels, list[Line]]:
    width, height = (int(side) for side in rng.integers(400, 901, 2))
    paper, ink = _colours(rng)
    image, found = Image.new("RGB", (width, height), paper), []
    draw, y = ImageDraw.Draw(image), float(rng.uniform(10, 40))
    while y < height - 60:
        text, font = _words(rng, 4), _font(rng, int(rng.integers(16, 37)))
        left, top, right, bottom = font.getbbox(text)
        if right - left < width - 20 and y + bottom - top < height - 10:
            x = float(rng.uniform(10, width - 10 - (right - left)))
            draw.text((x - left, y - top), text, font=font, fill=ink)
            found.append(Line(text, (x, y, x + right - left, y + bottom - top)))
            y += bottom - top
        y += float(rng.uniform(12, 60))
    return _noisy(rng, image), found


def _words(rng: np.random.Generator, most: int) -> str:
    word: Callable[[], str] = lambda: "".join(rng.choice([*LETTERS], int(rng.integers(3, 9))))  # noqa: E731
    return " ".join(word() for _ in range(int(rng.integers(1, most + 1))))


def _font(rng: np.random.Generator, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own, or one of those that matplotlib comes with."""
    chosen = int(rng.integers(len(DEJAVU) + 1))
    if chosen == len(DEJAVU):
        return ImageFont.load_default(size)
    spec = find_spec("matplotlib")
    assert spec is not None and spec.origin is not None
    return ImageFont.truetype(Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / f"{DEJAVU[chosen]}.ttf", size)


def _colours(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Paper and ink, light on dark or dark on light."""
    light, dark = (tuple(int(v) for v in rng.integers(low, low + 80, 3)) for low in (176, 0))
    return (light, dark) if rng.random() < 0.7 else (dark, light)


def _noisy(rng: np.random.Generator, image: Image.Image) -> Pixels:
    """With a slope of brightness and noise on it."""
    x = np.asarray(image, np.float32)[:, :, ::-1]
    slope = np.linspace(-1, 1, x.shape[1], dtype=np.float32)[None, :, None] * rng.uniform(-20, 20)
    noise = rng.normal(0, rng.uniform(0, NOISE), x.shape)
    return np.clip(x + slope + noise, 0, 255).round().astype(np.uint8)
