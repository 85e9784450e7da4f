"""What RapidOCR reads with a set of files, and how that compares with the truth and with other files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.networks.text_images import Line, Pixels


@dataclass(frozen=True)
class Images:
    """Rendered text: lines by themselves, and pages of several."""

    lines: list[tuple[Pixels, str]]
    pages: list[tuple[Pixels, list[Line]]]


@dataclass(frozen=True)
class Reading:
    """What a set of files makes of them: the text of every line; of every page the texts and their boxes (4, 2)."""

    lines: list[str]
    texts: list[list[str]]
    boxes: list[list[np.ndarray]]


def read(files: Mapping[str, Path], images: Images) -> Reading:
    """Read all images by RapidOCR's own code on one thread, as it comes, but that no text is too uncertain to tell."""
    from rapidocr_onnxruntime import RapidOCR  # pyright: ignore[reportMissingImports]

    paths = {f"{name}_model_path": str(path) for name, path in files.items()}
    engine = RapidOCR(text_score=0.0, intra_op_num_threads=1, inter_op_num_threads=1, **paths)
    lines = [engine(pixels, use_det=False)[0][0][0] for pixels, _ in images.lines]
    found = [engine(pixels)[0] or [] for pixels, _ in images.pages]
    texts = [[text for _, text, _ in page] for page in found]
    return Reading(lines, texts, [[np.asarray(box) for box, _, _ in page] for page in found])


def no_spaces(text: str) -> str:
    return text.replace(" ", "")


def lines_right(reading: Reading, images: Images, *, spaces: bool = False) -> np.ndarray:
    """100 for every line that is read right, 0 for the others."""
    told = no_spaces if not spaces else str
    pairs = zip(reading.lines, images.lines, strict=True)
    return np.array([100.0 * (told(found) == told(truth)) for found, (_, truth) in pairs])


def share_of_pages(reading: Reading, images: Images) -> float:
    """Percent of the lines of all pages that are among the texts found on their page, spaces aside."""
    hits = [
        no_spaces(line.text) in {*map(no_spaces, texts)}
        for texts, (_, lines) in zip(reading.texts, images.pages, strict=True)
        for line in lines
    ]
    return 100 * float(np.mean(hits))


def boxes_overlap(found: Reading, wanted: Reading) -> float:
    """Mean intersection over union of the boxes of all pages, and 0 for each without a counterpart."""
    from shapely.geometry import Polygon  # pyright: ignore[reportMissingModuleSource, reportMissingImports]

    overlaps = []
    for mine, theirs in zip(found.boxes, wanted.boxes, strict=True):
        a, b = ([Polygon(box).buffer(0) for box in boxes] for boxes in (mine, theirs))
        table = [[p.intersection(q).area / max(p.union(q).area, 1e-9) for q in b] for p in a]
        overlaps += paired(np.array(table, float).reshape(len(a), len(b)))
    return float(np.mean(overlaps)) if overlaps else math.nan


def paired(table: np.ndarray) -> list[float]:
    """Overlaps (n, m) of one page -> those of pairs, largest first, and 0 for each row and column that is in none."""
    left, found = table.copy(), []
    while left.size and left.max() > 0:
        i, j = np.unravel_index(int(left.argmax()), left.shape)
        found.append(float(left[i, j]))
        left[i, :], left[:, j] = 0, 0
    return found + [0.0] * (sum(table.shape) - 2 * len(found))
