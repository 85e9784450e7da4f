"""Bytes of packed files against the float32 safetensors of the model's parameters and buffers; random weights.

    python -m bench.tables.packed_bytes                            # three networks, about two minutes
    python -m bench.tables.packed_bytes --models timm:mobilenetv2_100

Only bytes matter here, so inputs are small and layers are rounded to nearest one by one. Every file is loaded again
and compared bit for bit. "ends alike" gives the first and the last layer the width of the others.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from datafree import Recipe, Run, compress, load_model
from datafree.export.packed.packed import load, save
from datafree.run.graph_json import tensors_of

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", default=["timm:mobilenetv2_100", "torchvision:resnet18", "torchvision:resnet50"]
    )
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | weights | bytes | of float | bar | compressed | save, load | compressed: save, load |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.models:
            torch.manual_seed(0)
            model, example = load_model(name)
            save_file(model.state_dict(), Path(scratch) / "float.safetensors")
            size = (Path(scratch) / "float.safetensors").stat().st_size
            for row in options.rows:
                preset, settings, bar = ROWS[row]
                recipe = Recipe.preset(preset).updated([*CHEAP, *settings])
                run = compress(model, recipe, example[:, :, :64, :64])
                plain, squeezed = (measure(run, Path(scratch), compress=squeeze) for squeeze in (False, True))
                print(
                    f"| {name} | {row} | {plain[0]} | {plain[0] / size:.4f} | {bar or ''} | {squeezed[0] / size:.4f} | "
                    f"{plain[1]:.1f} s, {plain[2]:.1f} s | {squeezed[1]:.1f} s, {squeezed[2]:.1f} s |",
                    flush=True,
                )


def measure(run: Run, scratch: Path, *, compress: bool) -> tuple[int, float, float]:
    """Bytes, seconds to save, seconds to load."""
    path = scratch / "net.safetensors"
    start = time.perf_counter()
    save(run, path, compress=compress, force=True)
    saved = time.perf_counter()
    found, wanted = tensors_of(load(path)), tensors_of(run.student)
    loaded = time.perf_counter()
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)
    return path.stat().st_size, saved - start, loaded - saved


if __name__ == "__main__":
    main()
