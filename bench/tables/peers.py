"""Other packages on the same networks, each with the least code its manual asks for, in an environment of its own.

    make peers                                                     # .venv-peers, once; then everything
    python -m bench.tables.peers --networks resnet20_cifar10 --peers nncf brevitas --presets w8a8

Peers ask for calibration images. They get those this package makes for itself (dead leaves, "probes"), and in a second
row 128 real images that are never evaluated on. Every run is a process on one thread. Writes JSON lines and a Markdown
table to bench/results/; what a peer cannot do, or fails at, is a row that says so.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bench import arguments
from bench.networks.trained import NETWORKS, open_networks
from bench.rows import ROOT, append_row, commits_note, mark, rows_on_file
from datafree import Recipe, compress
from datafree.graph.capture import trace
from datafree.models.load import input_range
from datafree.recipe import Propagated
from datafree.signals import make_signal
from datafree.teacher.batchnorm import fold_batchnorm_

OWN = "datafree"
PEERS = (OWN, "nncf", "aimet", "brevitas", "onnxruntime", "mct")
PRESETS = {"w8a8-tensor": (8, "tensor"), "w8a8": (8, "channel"), "w4a8": (4, "channel")}  # bits and granularity
IMAGES = ("probes", "real")
TIME_LIMIT = 900  # seconds of one peer on one network
SCRIPT = ROOT / "bench" / "peers" / "one.py"
NOTE = """Points of top-1 lost ± standard error over images (paired), in brackets agreement with the float network in
percent; a dash with the reason below the table. Weights of all layers have the same width, the first and the last too.
*probes*: calibrated on the images this package makes for itself; *real*: on 128 real images that are never evaluated
on, a reference; *none*: given nothing. Each peer with the least code of its manual
(bench/peers/). Seconds are of quantizing W8A8 per channel, one thread of a busy machine, for orientation only.
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
    parser.add_argument("--images", type=int, default=872, help="evaluate on so many at most")
    options = parser.parse_args()
    zoo = open_networks(options)
    for network in options.networks:
        if zoo.measured_on(network):
            print(f"skipped: {network}: peers are compared on the images of --zoo alone", flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            case = _case(zoo, network, options.images)
            _write(case, Path(folder))
            for peer in options.peers:
                for preset in options.presets:
                    for images in options.calibration:
                        row = measure(case, peer, preset, images, options.python, Path(folder))
                        append_row(options.out / "peers.jsonl", vars(row))
                        print(line(row), flush=True)
    (options.out / "peers.md").write_text(page(options.out))


def _case(zoo, network: str, most: int) -> Case:
    model, (x, y) = zoo.load(network), zoo.images(network)
    count = min(most, NETWORKS[network])
    with torch.no_grad():
        logits = torch.cat([model(part) for part in x[:count].split(100)])
    teacher = trace(model, x[:1])
    stats, _ = fold_batchnorm_(teacher)
    source = make_signal(teacher, stats, Propagated(), seed=0, input_range=input_range(model))
    return Case(network, model, x[:count], y[:count], logits, {"probes": source.inputs[0], "real": x[-128:]})


def _write(case: Case, folder: Path) -> None:
    """The network as a graph of PyTorch's own modules, so that a peer's environment needs nothing of ours; images."""
    traced = torch.fx.symbolic_trace(case.model)
    for node in traced.graph.nodes:
        node.type = None  # annotations that are text cannot be pickled
    traced.recompile()
    torch.save(traced, folder / "model.pt")
    np.save(folder / "images.npy", case.x.numpy())
    for name, images in case.calibration.items():
        np.save(folder / f"{name}.npy", images.numpy())


def measure(case: Case, peer: str, preset: str, images: str, python: Path, folder: Path) -> Row:
    """Quantize and evaluate once; a row with the reason where that does not work."""
    shown = "none" if peer == OWN and images == "probes" else images
    known = (case.network, peer, version(OWN) if peer == OWN else "", preset, shown, 0, len(case.x))
    try:
        if peer == OWN:
            logits, number, seconds = _own(case, preset, images)
        else:
            logits, number, seconds = _peer(peer, preset, images, python, folder)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return Row(*known, skipped=str(error))
    right, float_right = (100.0 * (v.argmax(1) == case.y).double() for v in (logits, case.logits))
    lost = float_right - right
    agreement = 100 * float((logits.argmax(1) == case.logits.argmax(1)).double().mean())
    known = (*known[:2], number, *known[3:])
    error = float(lost.std()) / math.sqrt(len(lost))
    return Row(*known, float(right.mean()), float(lost.mean()), error, agreement, seconds)


def _own(case: Case, preset: str, images: str) -> tuple[Tensor, str, float]:
    recipe, given = Recipe.preset(preset).updated(["first_last=same"]), None
    if images == "real":
        recipe, given = recipe.updated(["signal.kind=loader"]), (case.calibration["real"],)
    start = time.perf_counter()
    run = compress(case.model, recipe, case.x[:1], images=given)
    seconds = round(time.perf_counter() - start, 1)
    with torch.no_grad():
        return torch.cat([run.student(part) for part in case.x.split(100)]), version(OWN), seconds


def _peer(peer: str, preset: str, images: str, python: Path, folder: Path) -> tuple[Tensor, str, float]:
    """Run one.py in the peers' environment.

    Raises:
        ValueError: no such environment, the time limit, or the last line of what went wrong.
    """
    if not python.exists():
        raise ValueError("there is no environment of peers; make one with `make peers`, or give its python as --python")
    bits, per = PRESETS[preset]
    command = [python, SCRIPT, peer, folder, "--calibration", folder / f"{images}.npy", "--bits", bits, "--per", per]
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    alone |= {  # NNCF compiles its operators at first use
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "NNCF_EXTENSION_LOAD_TIMEOUT": "0",
    }
    try:
        ended = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, timeout=TIME_LIMIT, env=alone, cwd=folder
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"not done after {TIME_LIMIT} seconds") from None
    if ended.returncode:
        last = (ended.stderr.strip() or ended.stdout.strip() or "no message").splitlines()[-1]
        raise ValueError(last.replace(str(folder), "").replace(str(python.parents[1]), "")[:300])
    told = json.loads(ended.stdout.strip().splitlines()[-1])
    return torch.from_numpy(np.load(folder / "logits.npy")), told["version"], told["seconds"]


def written(path: Path) -> list[Row]:
    """All rows on file, the last one of each network, peer, preset and images."""
    return rows_on_file([path], Row, lambda r: (r.network, r.peer, r.preset, r.images))


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
        here = {(r.peer, r.images, r.preset): r for r in rows if r.network == network}
        first = next(iter(here.values()))
        known = next((r for r in here.values() if r.top1 is not None and r.lost is not None), None)
        score = f"float top-1 {known.top1 + known.lost:.1f} % on " if known else ""
        text.append(f"\n### {network}: {score}{first.num_images} images\n")
        text.append("| | images | " + " | ".join(PRESETS) + " | seconds |\n|---|---|" + "---|" * (len(PRESETS) + 1))
        for peer, images in dict.fromkeys((p, i) for p, i, _ in here):
            own = [here.get((peer, images, preset)) for preset in PRESETS]
            number = next((r.version for r in own if r is not None and r.version), "")
            seconds = next((f"{r.seconds:.0f}" for r in own if r and r.preset == "w8a8" and r.seconds is not None), "")
            text.append(f"| {peer} {number} | {images} | " + " | ".join(map(_cell, own)) + f" | {seconds} |")
        reasons: dict[tuple[str, str], list[str]] = {}
        for r in here.values():
            if r.skipped:
                reasons.setdefault((r.peer, r.skipped), []).append(f"{r.preset} ({r.images})")
        text += [f"\n{peer} {', '.join(where)}: {reason}" for (peer, reason), where in reasons.items()]
    return "\n".join(text) + "\n"


def _cell(r: Row | None) -> str:
    if r is None:
        return ""
    return ("—" if r.skipped else f"{r.lost:.1f} ± {r.lost_error:.1f} ({r.agreement:.0f})") + mark([r])


if __name__ == "__main__":
    main()
