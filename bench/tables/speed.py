"""What compressing costs, in float forward passes of the same 64 probes at 224x224, in one run on one thread.

    python -m bench.tables.speed                                          # w8a8 and w4a8 on two networks, three rounds
    python -m bench.tables.speed --models torchvision:resnet50 --presets w8a8 --rounds 1   # peak memory

Layers are solved one by one on probes sent once through the network, unless --set says otherwise.

Rounds interleave forward pass and compression, so that a machine whose speed drifts drifts for both; the ratio is
taken round by round and the median printed. Capture and making the probes are included. Each preset runs in a
process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch

from bench.rows import RESULTS, ROOT, append_row
from datafree import Recipe, compress, load_model
from datafree.signals.probes import dead_leaves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["timm:mobilenetv2_100", "torchvision:resnet18"])
    parser.add_argument("--presets", nargs="+", default=["w8a8", "w4a8"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=["signal.kind=propagated", "solve.sequential=false"])
    parser.add_argument("--one", action="store_true", help="measure in this process")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.models[0], options.presets[0], options.rounds, options.set)))
        return
    for model in options.models:
        for preset in options.presets:
            asked = ["--models", model, "--presets", preset, "--rounds", str(options.rounds), "--set", *options.set]
            command = [sys.executable, "-m", "bench.tables.speed", "--one", *asked]
            said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
            row = json.loads(said.splitlines()[-1])
            append_row(RESULTS / "speed.jsonl", row)
            print(
                f"{model} {preset}: {row['ratio']:.1f} forward passes (rounds {row['ratios']}), "
                f"forward {row['forward']:.2f} s, compress {row['compress']:.1f} s, "
                f"probes {row['probes']:.2f} s, peak {row['peak_gib']:.2f} GiB",
                flush=True,
            )


def measure(name: str, preset: str, rounds: int, settings: list[str]) -> dict[str, object]:
    """Median seconds and ratios over the rounds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, example = load_model(name)
    recipe = Recipe.preset(preset).updated(settings)
    times: dict[str, list[float]] = {"probes": [], "forward": [], "compress": []}
    for _ in range(rounds):
        images = _timed(times["probes"], lambda: dead_leaves(64, height=224, width=224, generator=torch.Generator()))
        with torch.no_grad():
            _timed(times["forward"], lambda images=images: model(images))
        del images
        _timed(times["compress"], lambda: compress(model, recipe, example))
    ratios = [c / f for c, f in zip(times["compress"], times["forward"], strict=True)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "model": name, "preset": preset, "settings": settings, "threads": 1, "ratio": statistics.median(ratios),
        "ratios": [round(r, 1) for r in ratios], "peak_gib": peak,
        **{k: statistics.median(v) for k, v in times.items()},
    }  # fmt: skip


def _timed(into: list[float], work):
    start = time.perf_counter()
    result = work()
    into.append(time.perf_counter() - start)
    return result


if __name__ == "__main__":
    main()
