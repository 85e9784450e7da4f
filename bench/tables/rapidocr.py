"""RapidOCR on rendered text: its three files as they come, and compressed without data; its own code reads with both.

    make bench-rapidocr                        # RapidOCR into .venv-rapidocr, once; then everything
    python -m bench.tables.rapidocr --rows ours --set det:layers.p2o.Conv.3=keep

Detector, direction classifier and recogniser (PP-OCRv4, by Paddle's exporter, sizes open) are compressed by the one
command, told the size of an input and how RapidOCR normalises pixels, and nothing of text. Images are seen by
evaluation only. Writes JSON lines (bench/results/rapidocr.jsonl) and bench/results/rapidocr.md; rows there that current
code made are not made again.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from bench.networks.text_images import lines, pages
from bench.rows import RESULTS, append_row, commits_note, finished, mark, rows_on_file
from bench.tables.rapidocr_files import FLOAT, OURS, PARTS, WAYS, originals, settings_of, share_of_bytes, speeds
from bench.tables.rapidocr_reading import Images, Reading, boxes_overlap, lines_right, no_spaces, read, share_of_pages

NOTE = """Lines: one to three random words, read by direction classifier and recogniser: percent read right, spaces
aside, in brackets with them; points lost ± standard error (paired); *same*: percent whose text is that of the float
files. Pages: several lines each, through all of RapidOCR: percent of their lines that are found and read right, spaces
aside; *boxes*: mean overlap (intersection over union) of the detector's boxes with those of the float file, where a box
without a counterpart counts 0. *bytes*: of the float files, in brackets detector, classifier and recogniser. *speed*:
time of the float file over that of this one, of the same three; above 1 is faster; ONNX Runtime, one thread, one image,
the detector at 736 x 736. *ours*: `datafree compress FILE --recipe w8a8 --input 1,3,H,W --mean 0.5,0.5,0.5 --std
0.5,0.5,0.5`; seconds are of all three. *given*: and `--images` with 64 lines or pages of text, rendered with another
seed. ONNX Runtime's quantizers are given no data either: *dynamic* takes ranges from
the image at hand, *static* from uniform noise. Asked for: at most 1 point lost, boxes 0.95, bytes 0.30, and a detector
and a recogniser that are not slower than float."""
HEAD = ("lines read", "lost", "same", "lines of pages read", "boxes", "bytes", "speed", "seconds")


@dataclass(frozen=True)
class Row:
    """RapidOCR with one set of files: percent, points, shares of float; with `spaced`, spaces count."""

    row: str
    seed: int
    num_images: int
    num_pages: int
    read: float = math.nan
    read_spaced: float = math.nan
    lost: float = math.nan
    lost_error: float = math.nan
    lost_spaced: float = math.nan
    same: float = math.nan
    same_spaced: float = math.nan
    pages_read: float = math.nan
    overlap: float = math.nan
    share: float = math.nan
    shares: dict[str, float] = field(default_factory=dict)
    speeds: dict[str, float] = field(default_factory=dict)
    seconds: float = math.nan
    skipped: str = ""
    commit: str = ""

    @property
    def key(self) -> tuple[str, int]:
        return (self.row, self.seed)


def main() -> None:
    parser = _parser()
    options = parser.parse_args()
    if find_spec("rapidocr_onnxruntime") is None:
        parser.error("rapidocr_onnxruntime is not installed; run it as `make bench-rapidocr`")
    done = set() if options.again else finished(written(options.out), options.lines)
    images = Images(lines(options.lines, seed=0), pages(options.pages, seed=0))
    wanted = read(originals(), images)
    for way in [FLOAT, *options.rows]:
        settings = options.set if way == OURS else []
        row = Row(" ".join([way, *settings]), options.seed, options.lines, options.pages)
        if row.key not in done:
            made = measure(row, way, settings, images, wanted, options.rounds)
            append_row(options.out / "rapidocr.jsonl", vars(made))
            print(made, flush=True)
    (options.out / "rapidocr.md").write_text(page(options.out))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(WAYS), choices=list(WAYS), help="beside float")
    parser.add_argument("--lines", type=int, default=500)
    parser.add_argument("--pages", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of compression, and of noise")
    parser.add_argument("--rounds", type=int, default=30, help="in which the files of a part take turns")
    parser.add_argument("--set", nargs="*", default=[], help="settings of ours; det:KEY=VALUE is of the detector alone")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="also measure rows that are on file and current")
    return parser


def measure(row: Row, way: str, settings: Sequence[str], images: Images, wanted: Reading, rounds: int) -> Row:
    """Write the files, read with them and time them; the reason where that does not work."""
    source, start = originals(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        files = source if way == FLOAT else {name: Path(folder) / f"{name}.onnx" for name in PARTS}
        try:
            for name in PARTS if way != FLOAT else ():
                WAYS[way](name, files[name], settings_of(name, settings), row.seed)
            seconds = round(time.perf_counter() - start, 1)
            found = wanted if way == FLOAT else read(files, images)
            timed = speeds(files, rounds)
        except Exception as error:  # whatever quantizers and ONNX Runtime raise
            return replace(row, skipped=" ".join(str(error).split())[:300])
        share, shares = share_of_bytes(files)
    return replace(
        row, **scores(found, wanted, images), share=share, shares=shares, speeds=timed, seconds=seconds
    )  # fmt: skip


def scores(found: Reading, wanted: Reading, images: Images) -> dict[str, float]:
    """Figures of Row that are of what was read."""
    right, was_right = (lines_right(reading, images) for reading in (found, wanted))
    spaced, was_spaced = (lines_right(reading, images, spaces=True) for reading in (found, wanted))
    pairs = list(zip(found.lines, wanted.lines, strict=True))
    lost = was_right - right
    return {
        "read": float(right.mean()),
        "read_spaced": float(spaced.mean()),
        "lost": float(lost.mean()),
        "lost_error": float(lost.std()) / math.sqrt(len(lost)),
        "lost_spaced": float((was_spaced - spaced).mean()),
        "same": 100 * float(np.mean([no_spaces(a) == no_spaces(b) for a, b in pairs])),
        "same_spaced": 100 * float(np.mean([a == b for a, b in pairs])),
        "pages_read": share_of_pages(found, images),
        "overlap": boxes_overlap(found, wanted),
    }


def written(folder: Path) -> list[Row]:
    """All rows on file, the last one of each way and seed."""
    return rows_on_file([folder / "rapidocr.jsonl"], Row, lambda r: r.key)


def page(folder: Path) -> str:
    """One table: a row for each way."""
    order = [FLOAT, *WAYS]
    rows = sorted(written(folder), key=lambda r: order.index(r.row) if r.row in order else len(order))
    seeds = ", ".join(str(s) for s in sorted({r.seed for r in rows}))
    table = ["| | " + " | ".join(HEAD) + " |", "|---|" + "---|" * len(HEAD)]
    table += [f"| {r.row}{mark([r])} | {' | '.join(_cells(r))} |" for r in rows]
    table += [f"\n{r.row}: {r.skipped}" for r in rows if r.skipped]
    first = f"{rows[0].num_images} lines and {rows[0].num_pages} pages. Seed {seeds}. {commits_note(rows)}"
    return "\n".join([f"{NOTE.strip()}\n", f"{first}\n", *table]) + "\n"


def _cells(r: Row) -> list[str]:
    if r.skipped:
        return ["failed", *[""] * (len(HEAD) - 1)]
    parts = lambda values: " / ".join(f"{values[name]:.2f}" for name in PARTS)  # noqa: E731
    return [
        f"{r.read:.1f} ({r.read_spaced:.1f})",
        f"{r.lost:.1f} ± {r.lost_error:.1f} ({r.lost_spaced:.1f})",
        f"{r.same:.1f} ({r.same_spaced:.1f})",
        f"{r.pages_read:.1f}",
        f"{r.overlap:.3f}",
        f"{r.share:.3f} ({parts(r.shares)})",
        parts(r.speeds),
        f"{r.seconds:.0f}",
    ]


if __name__ == "__main__":
    main()
