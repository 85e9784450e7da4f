"""Bytes of packed files against the float32 safetensors of the model's parameters and buffers; random weights.

    python -m bench.tables.packed_bytes                            # three networks, about five minutes
    python -m bench.tables.packed_bytes --models timm:mobilenetv2_100

Only bytes matter here, so inputs are small and layers are rounded to nearest one by one. Every file is loaded again
and compared bit for bit. "ends alike" gives the first and the last layer the width of the others. Rows go to
`results/packed_bytes.jsonl`; those that are there and current are not made again.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench.rows import RESULTS, add_missing, commits_note, is_row_current, mark, rows_on_file
from bench.tables import markdown
from datafree import Recipe, Run, compress, load_model
from datafree.export.packed.packed import load, save
from datafree.run.graph_json import tensors_of

FILE = "packed_bytes.jsonl"
CHEAP = ["signal.kind=propagated", "signal.images=8", "solve.method=nearest", "solve.sequential=false"]
SPARSE = ["prune.sparsity=0.8", "prune.score=magnitude"]
ROWS = {  # name -> preset, settings, bar
    "int8": ("w8a8", [], 0.26),
    "int4": ("w4a8", [], 0.15),
    "int4, ends alike": ("w4a8", ["first_last=same"], 0.15),
    "int3, ends alike": ("w3a8", ["first_last=same"], None),
    "80 % sparse int8": ("w8a8", SPARSE, 0.08),
    "80 % sparse int4, ends alike": ("w4a8", [*SPARSE, "first_last=same"], None),
    "80 % sparse float": ("prune80", ["prune.score=magnitude"], None),
    "2:4 int8": ("w8a8", ["prune.pattern='2:4'"], None),
}


MODELS = ("timm:mobilenetv2_100", "torchvision:resnet18", "torchvision:resnet50")
SHOWN = {  # row -> in docs/files.md
    "int8": "int8", "int4": "`w4a8` (first and last layer 8 bits)", "int4, ends alike": "`w4a8`, `first_last=same`",
    "80 % sparse int8": "80 % sparse int8",
}  # fmt: skip


@dataclass(frozen=True)
class Packed:
    """One file: bytes plain and compressed, of so many of the float file; seconds to save and to load both."""

    model: str
    row: str
    float_bytes: int
    bytes: int
    squeezed_bytes: int
    seconds: tuple[float, float]
    squeezed_seconds: tuple[float, float]
    commit: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.model, self.row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    done = {row.key for row in written(RESULTS) if is_row_current(row)}
    asked = (((m, row), partial(measure, m, row)) for m in options.models for row in options.rows)
    add_missing(RESULTS / FILE, asked, done)
    for row in written(RESULTS):
        bar, share = ROWS[row.row][2], row.bytes / row.float_bytes
        if bar and share > bar:
            print(f"{row.model}, {row.row}: {share:.4f} of float, above its bar of {bar}")


def written(folder: Path) -> list[Packed]:
    return rows_on_file([folder / FILE], Packed, lambda row: row.key)


def block(folder: Path) -> str:
    """Share of the float file, of files as they are saved without asking for compression."""
    found = {row.key: row for row in written(folder)}
    models = [model for model in MODELS if any(key[0] == model for key in found)]
    cells = ([told, *(_share(found.get((model, row))) for model in models)] for row, told in SHOWN.items())
    lines = markdown.grid((model.partition(":")[2] for model in models), cells)
    shown = [row for row in found.values() if row.row in SHOWN]
    return "\n".join([*lines, "", commits_note(shown)]) + "\n"


def _share(row: Packed | None) -> str:
    return "" if row is None else f"{row.bytes / row.float_bytes:.3f}{mark([row])}"


def measure(name: str, row: str) -> Packed:
    """Compress a network of random weights, and save it in both ways."""
    preset, settings, _ = ROWS[row]
    torch.manual_seed(0)
    model, example = load_model(name)
    run = compress(model, Recipe.preset(preset).updated([*CHEAP, *settings]), example[:, :, :64, :64])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.safetensors"
        save_file(model.state_dict(), path)
        plain, squeezed = (saved(run, Path(folder), compress=squeeze) for squeeze in (False, True))
        return Packed(name, row, path.stat().st_size, plain[0], squeezed[0], plain[1:], squeezed[1:])


def saved(run: Run, scratch: Path, *, compress: bool) -> tuple[int, float, float]:
    """Bytes, seconds to save, seconds to load."""
    path = scratch / "net.safetensors"
    start = time.perf_counter()
    save(run, path, compress=compress, force=True)
    written = time.perf_counter()
    found, wanted = tensors_of(load(path)), tensors_of(run.student)
    loaded = time.perf_counter()
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)
    return path.stat().st_size, written - start, loaded - written


if __name__ == "__main__":
    main()
