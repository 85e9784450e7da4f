"""Other packages on the same networks, each with the least code its manual asks for, in an environment of its own.

    make peers                                                     # .venv-peers, once; then everything
    python -m bench.tables.peers --networks resnet20_cifar10 --peers nncf brevitas --presets w8a8

A row of each peer given nothing, given the images this package makes for itself (dead leaves, "probes"), and given 128
real images that are never evaluated on. Every run is a process on one thread. Writes JSON lines and a Markdown table to
bench/results/; what a peer does not offer, or fails at, is a row that says so. Rows on file that the code of today made
are not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench import arguments
from bench.networks.made_images import CACHE, images_made
from bench.networks.plain_modules import plain_modules
from bench.networks.trained import NETWORKS, Networks, open_networks
from bench.rows import ROOT, append_row, commits_note, finished, mark, rows_on_file
from datafree import Recipe, compress
from datafree.graph.capture import trace
from datafree.models.load import input_range
from datafree.recipe import Propagated
from datafree.signals import make_signal, signal_kind
from datafree.teacher.batchnorm import fold_batchnorm_

OWN = "datafree"
PEERS = (OWN, "aimet", "brevitas", "mct", "nncf", "onnxruntime", "onnxsim")
PRESETS = {"w8a8": (8, "channel"), "w8a8-tensor": (8, "tensor"), "w4a8": (4, "channel")}  # bits and granularity
IMAGES = ("none", "probes", "real")
NUM_IMAGES = {"resnet20_cifar10": 872, "mobilenetv1_025_imagenet": 436, "efficientnet_lite0": 300}  # evaluated on
TIME_LIMIT = 900  # seconds of one peer on one network
SCRIPT = ROOT / "bench" / "peers" / "one.py"
NOT_OFFERED = "NotImplementedError: "  # what a script in bench/peers raises where its package has no such mode
NOTE = """Points of top-1 lost ± standard error over images (paired), in brackets agreement with the float network in
percent; "not offered" and "failed" with the reason below the table; an empty cell is not measured yet. Weights of all
layers have the same width, the first and the last too. *none*: given nothing. That is this package's own way; Brevitas
and ONNX Runtime then take the range of the input at hand, at every call; MCT makes images from BatchNorm (100 steps
where it would take 500 by itself); onnxsim feeds normal noise. *probes*: calibrated on the images this package makes
for itself; *real*: on 128 real images that are never evaluated on. Each peer with the least code of its manual
(bench/peers/). Sums stay in float in Brevitas where there is a ReLU6 or nothing is given, in onnxsim per channel and in
ONNX Runtime given nothing. Seconds are of quantizing W8A8 per channel, one thread of a busy machine, for orientation
only.

Known causes: AIMET rounds between depthwise convolutions and their ReLU6, onnxsim with one scale a tensor between all
convolutions and theirs; NNCF has weights of 4 bits for its NPU alone; ONNX Runtime given nothing writes ConvInteger,
whose answers on mobilenetv1 are wrong with signed and unsigned weights, with a scale a tensor or a channel alike.
"""


@dataclass(frozen=True)
class Row:
    """One peer's student, evaluated. Accuracies are percent, `lost` is points; None where it was skipped."""

    network: str
    peer: str
    version: str
    preset: str
    images: str
    seed: int
    num_images: int
    top1: float | None = None
    lost: float | None = None
    lost_error: float | None = None
    agreement: float | None = None
    seconds: float | None = None
    skipped: str = ""
    commit: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        return (self.network, self.peer, self.preset, self.images)


@dataclass(frozen=True)
class Case:
    """A network, what it is evaluated on, and what peers may calibrate on, by name."""

    network: str
    model: nn.Module
    x: Tensor
    y: Tensor
    logits: Tensor
    calibration: dict[str, Tensor]


def main() -> None:
    parser = arguments.parser(__doc__)
    parser.add_argument("--python", type=Path, default=ROOT / ".venv-peers" / "bin" / "python")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=list(PRESETS))
    parser.add_argument("--calibration", nargs="+", default=list(IMAGES), choices=list(IMAGES))
    parser.add_argument("--images", type=int, help="evaluate on so many at most")
    parser.add_argument("--set", nargs="*", default=[], help="recipe settings for this package; its rows name them")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder that keeps images made by `inverted`")
    parser.add_argument("--again", action="store_true", help="also measure rows that are on file and current")
    parser.set_defaults(networks=list(NUM_IMAGES))
    options = parser.parse_args()
    zoo = open_networks(options)
    for network in on_their_own_images(zoo, options.networks):
        with tempfile.TemporaryDirectory() as folder:
            count = options.images or NUM_IMAGES.get(network, 872)
            fill(_case(zoo, network, count), Path(folder), options)
    (options.out / "peers.md").write_text(page(options.out))


def on_their_own_images(zoo: Networks, networks: Iterable[str]) -> Iterator[str]:
    """The networks that have them; a line for each other."""
    for network in networks:
        if zoo.measured_on(network):
            print(f"skipped: {network}: peers are compared on the images of --zoo alone", flush=True)
        else:
            yield network


def fill(case: Case, folder: Path, options: argparse.Namespace) -> None:
    """Measure every row asked for of one network, but those on file."""
    file = options.out / "peers.jsonl"
    done = set() if options.again else finished(written(file), len(case.x))
    save(case, folder)
    for peer, preset, images in product(options.peers, options.presets, options.calibration):
        given = " ".join(["none", *options.set]) if peer == OWN and images == "none" else images
        if (case.network, peer, preset, given) in done or (peer == OWN and images == "probes"):
            continue
        row = measure(case, peer, preset, given, folder, options)
        append_row(file, vars(row))
        print(line(row), flush=True)


def _case(zoo: Networks, network: str, most: int) -> Case:
    model, (x, y) = zoo.load(network), zoo.images(network)
    count = min(most, NETWORKS[network])
    with torch.no_grad():
        logits = torch.cat([model(part) for part in x[:count].split(100)])
    teacher = trace(model, x[:1])
    stats, _ = fold_batchnorm_(teacher)
    source = make_signal(teacher, stats, Propagated(), seed=0, input_range=input_range(model))
    return Case(network, model, x[:count], y[:count], logits, {"probes": source.inputs[0], "real": x[-128:]})


def save(case: Case, folder: Path) -> None:
    """The network, so that a peer's environment needs nothing of ours, and images."""
    torch.save(plain_modules(case.model), folder / "model.pt")
    np.save(folder / "images.npy", case.x.numpy())
    for name, images in case.calibration.items():
        np.save(folder / f"{name}.npy", images.numpy())


def measure(case: Case, peer: str, preset: str, images: str, folder: Path, options: argparse.Namespace) -> Row:
    """Quantize and evaluate once; a row with the reason where that does not work."""
    known = (preset, images, 0, len(case.x))
    try:
        if peer == OWN:
            logits, number, seconds = _own(case, preset, images, options)
        else:
            logits, number, seconds = _peer(peer, preset, images, options.python, folder)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return Row(case.network, peer, version(OWN) if peer == OWN else "", *known, skipped=str(error))
    return Row(case.network, peer, number, *known, *scores(logits, case.logits, case.y), round(seconds, 1))


def scores(logits: Tensor, wanted: Tensor, y: Tensor) -> tuple[float, float, float, float]:
    """Percent right, points lost against the float network and their paired standard error, percent that agree.

    Args:
        logits: (N, classes), those of the float network the same.
        y: (N,), the right classes.
    """
    right, float_right = (100.0 * (v.argmax(1) == y).double() for v in (logits, wanted))
    lost, error = mean_and_error(float_right - right)
    return float(right.mean()), lost, error, 100 * float((logits.argmax(1) == wanted.argmax(1)).double().mean())


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Of values (N,), and the standard error of that mean."""
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def _own(case: Case, preset: str, images: str, options: argparse.Namespace) -> tuple[Tensor, str, float]:
    recipe, given, spent = Recipe.preset(preset).updated(["first_last=same", *options.set]), None, 0.0
    if images == "real":
        recipe, given = recipe.updated(["signal.kind=loader"]), (case.calibration["real"],)
    elif signal_kind(recipe.signal).keeps_images:
        made = images_made(case.network, case.model, recipe, case.x[:1], seed=0, cache=options.cache)
        given, spent = made.images, made.seconds
    start = time.perf_counter()
    run = compress(case.model, recipe, case.x[:1], images=given)
    seconds = spent + time.perf_counter() - start
    with torch.no_grad():
        return torch.cat([run.student(part) for part in case.x.split(100)]), version(OWN), seconds


def _peer(peer: str, preset: str, images: str, python: Path, folder: Path) -> tuple[Tensor, str, float]:
    """Run one.py in the peers' environment."""
    bits, per = PRESETS[preset]
    command: list[object] = [SCRIPT, peer, folder, "--bits", bits, "--per", per]
    command += [] if images == "none" else ["--calibration", folder / f"{images}.npy"]
    told = run_alone(command, python, folder)
    return torch.from_numpy(np.load(folder / "logits.npy")), told["version"], told["seconds"]


def run_alone(command: Sequence[object], python: Path, folder: Path) -> dict[str, Any]:
    """What a script of bench/peers/ prints at its end: run in that folder, in the peers' environment, on one thread.

    Raises:
        ValueError: no such environment, the time limit, or the last line of what went wrong.
    """
    if not python.exists():
        raise ValueError(
            "no such environment; `make peers` or `make file-peers` makes it, --python is another's python"
        )
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    alone |= {  # NNCF compiles its operators at first use
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "NNCF_EXTENSION_LOAD_TIMEOUT": "0",
    }
    try:
        ended = subprocess.run(
            [str(part) for part in (python, *command)],
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT,
            env=alone,
            cwd=folder,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"not done after {TIME_LIMIT} seconds") from None
    if ended.returncode:
        last = (ended.stderr.strip() or ended.stdout.strip() or "no message").splitlines()[-1]
        raise ValueError(last.replace(str(folder), "").replace(str(python.parents[1]), "")[:300])
    return json.loads(ended.stdout.strip().splitlines()[-1])


def written(path: Path) -> list[Row]:
    """All rows on file, the last one of each network, peer, preset and images."""
    return rows_on_file([path], Row, lambda r: r.key)


def line(r: Row) -> str:
    told = f"{r.network} {r.peer} {r.version} {r.preset}, {r.images}: "
    if r.skipped:
        return told + f"skipped: {r.skipped}"
    return told + (
        f"top-1 {r.top1:.1f} % (lost {r.lost:.1f} ± {r.lost_error:.1f} points, {r.num_images} images), "
        f"agreement {r.agreement:.1f} %, {r.seconds:.1f} s"
    )


def page(folder: Path) -> str:
    """Markdown: one table a network; a row for each peer and kind of images, presets across."""
    rows = written(folder / "peers.jsonl")
    text = [f"Seed 0. {NOTE}\n{commits_note(rows)}"]
    for network in [n for n in NETWORKS if any(r.network == n for r in rows)]:
        text += table([r for r in rows if r.network == network])
    return "\n".join(text) + "\n"


def table(rows: list[Row]) -> list[str]:
    """Lines of Markdown: the rows of one network, then why cells are empty."""
    top1 = next((r.top1 + r.lost for r in rows if r.top1 is not None and r.lost is not None), None)
    score = "" if top1 is None else f"float top-1 {top1:.1f} % on "
    text = [f"\n### {rows[0].network}: {score}{rows[0].num_images} images\n"]
    text.append("| | images | " + " | ".join(PRESETS) + " | seconds |\n|---|---|" + "---|" * (len(PRESETS) + 1))
    for peer, images in sorted({(r.peer, r.images) for r in rows}, key=lambda of: (PEERS.index(of[0]), of[1])):
        own = {r.preset: r for r in rows if (r.peer, r.images) == (peer, images)}
        number = next((r.version for r in rows if r.peer == peer and r.version), "")
        seconds = next((f"{r.seconds:.0f}" for r in own.values() if r.preset == "w8a8" and r.seconds is not None), "")
        across = " | ".join(_cell(own.get(preset)) for preset in PRESETS)
        text.append(f"| {peer} {number} | {images} | {across} | {seconds} |")
    return text + reasons(rows)


def reasons(rows: list[Row]) -> list[str]:
    """A line for every reason of a peer, with the cells it is of."""
    of: dict[tuple[str, str], list[str]] = {}
    for r in (r for r in rows if r.skipped):
        of.setdefault((r.peer, r.skipped.removeprefix(NOT_OFFERED)), []).append(f"{r.preset} ({r.images})")
    return [f"\n{peer} {', '.join(where)}: {reason}" for (peer, reason), where in of.items()]


def _cell(r: Row | None) -> str:
    if r is None:
        return ""
    if r.skipped:
        return ("not offered" if r.skipped.startswith(NOT_OFFERED) else "failed") + mark([r])
    return f"{r.lost:.1f} ± {r.lost_error:.1f} ({r.agreement:.0f})" + mark([r])


if __name__ == "__main__":
    main()
