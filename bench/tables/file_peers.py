"""Other tools on the same ONNX files, BatchNorm folded away, given no image: a file in, a smaller file out.

    make file-peers                                             # .venv-file-peers, once; then everything
    python -m bench.tables.file_peers --networks resnet20_cifar10 --tools onnxsim modelopt

Every tool at 8 bits with what it does by itself where there is no image; every file runs in ONNX Runtime on labelled
images that no tool has seen. Writes JSON lines (bench/results/file_peers.jsonl) and bench/results/file_peers.md; a tool
that fails is a row with its reason. Rows there that current code made are not made again.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench import arguments
from bench.networks.trained import LITE, NETWORKS, Networks, open_networks
from bench.rows import ROOT, append_row, commits_note, finished, mark, rows_on_file
from bench.tables.folding import PIXELS, folded
from bench.tables.markdown import grid
from bench.tables.one_command import compress_file
from bench.tables.onnx_files import FOLDED, exported
from bench.tables.peers import mean_and_error, on_their_own_images, run_alone, scores
from datafree.export.onnx.onnxruntime import run_file, session

FILE = "file_peers"
OWN, UNTOLD = "datafree", "datafree, scale not told"
PEERS = {  # as bench/peers/one_file.py knows them, and what they do
    "onnxsim": "`simplify`, then `quantize_static`, on normal noise; floats stay in the file",
    "modelopt": "`quantize`, on evenly spread noise; other values in 16 bits",
    "modelopt, fp32": "the same, other values in 32 bits",
    "onnxruntime, dynamic": "`quantize_dynamic`, signed weights, a scale a tensor",
    "onnxruntime, dynamic, unsigned": "`quantize_dynamic`, unsigned weights, a scale a channel",
    "onnxruntime, uniform noise": "`quantize_static`, a scale a channel, on noise from 0 to 1",
    "onnxruntime, normal noise": "`quantize_static`, a scale a channel, on normal noise",
    "quark, U8S8_AAWS": "ready configuration, a scale a tensor, its reader of random data",
    "quark, XINT8": "the same, scales that are powers of two",
}
TOOLS = {
    OWN: "`datafree compress FILE --recipe w8a8 --mean .. --std .. --out small.onnx`",
    UNTOLD: "the same without `--mean` and `--std`",
    **PEERS,
}
NUM_IMAGES = {"resnet20_cifar10": 872, "mobilenetv1_025_imagenet": 436, LITE: 200}  # evaluated on
SCRIPT = ROOT / "bench" / "peers" / "one_file.py"
NOTE = """Files of 8 bits made from the same float file (PyTorch's exporter, opset 17, BatchNorm folded) without an
image, by what each tool does on its own. Points of top-1 lost ± standard error over images (paired), in brackets
agreement with the float file in percent, all in ONNX Runtime. *more than ours*: points lost beyond the file of this
package that was told mean and std, ± standard error of that difference (paired); within one standard error both are
called level. *bytes*: of the float file. *seconds*: of the whole command, with checks, timing and an estimate, for this
package, of the call for the others; one thread of a busy machine, for orientation only.

Known causes: ModelOpt's 16 bits, not its integers, break networks with depthwise layers in ONNX Runtime on a CPU, on
mobilenetv1 with real images as well. Quark has one scale for all weights of a layer, and no right answers on
mobilenetv1 with real images either. ConvInteger, which the dynamic quantizer writes, is wrong on mobilenetv1 with any
weights (see [peers.md](peers.md))."""


@dataclass(frozen=True)
class Row:
    """One tool's file, evaluated. Accuracies are percent, `lost` is points; `right` a bit an image, in hexadecimal."""

    network: str
    tool: str
    num_images: int
    version: str = ""
    float_top1: float | None = None
    top1: float | None = None
    lost: float | None = None
    lost_error: float | None = None
    agreement: float | None = None
    bytes_ratio: float | None = None
    seconds: float | None = None
    right: str = ""
    skipped: str = ""
    commit: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return (self.network, self.tool)


@dataclass(frozen=True)
class Case:
    """A float file, what it is evaluated on, and what it answers."""

    network: str
    file: Path
    x: Tensor
    y: Tensor
    logits: Tensor


def main() -> None:
    parser = arguments.parser(__doc__)
    parser.add_argument("--python", type=Path, default=ROOT / ".venv-file-peers" / "bin" / "python")
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--images", type=int, help="evaluate on so many at most")
    parser.add_argument("--again", action="store_true", help="also measure rows that are on file and current")
    parser.set_defaults(networks=list(NUM_IMAGES))
    options = parser.parse_args()
    zoo = open_networks(options)
    for network in on_their_own_images(zoo, options.networks):
        with tempfile.TemporaryDirectory() as folder:
            count = zoo.num_images(network, options.images or NUM_IMAGES.get(network))
            fill(case_of(zoo, network, count, Path(folder)), options)
    (options.out / f"{FILE}.md").write_text(page(options.out))


def fill(case: Case, options: argparse.Namespace) -> None:
    """Measure every row asked for of one network, but those on file."""
    file = options.out / f"{FILE}.jsonl"
    done = set() if options.again else finished(written(options.out), len(case.x))
    for tool in options.tools:
        if (case.network, tool) not in done:
            row = measure(case, tool, options.python)
            append_row(file, vars(row))
            print(replace(row, right=""), flush=True)


def case_of(zoo: Networks, network: str, count: int, folder: Path) -> Case:
    """Write the float file, and run it."""
    file, (x, y) = folder / "float.onnx", zoo.images(network, count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter
        exported(folded(zoo.load(network)), x[:1], file, FOLDED)
    return Case(network, file, x, y, run_file(session(file), (x,))[0])


def measure(case: Case, tool: str, python: Path) -> Row:
    """Make a file and evaluate it; a row with the reason where that does not work."""
    row = Row(
        case.network, tool, len(case.x), float_top1=100 * float((case.logits.argmax(1) == case.y).double().mean())
    )
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small.onnx"
        try:
            number, seconds = make(case, tool, small, python)
            row = replace(row, version=number)
            logits = run_file(session(small), (case.x,))[0].float()
        except Exception as error:  # whatever quantizers and ONNX Runtime raise
            return replace(row, skipped=" ".join(str(error).replace(folder, "").split())[:300])
        share = small.stat().st_size / case.file.stat().st_size
    top1, lost, error, agreement = scores(logits, case.logits, case.y)
    return replace(
        row, top1=top1, lost=lost, lost_error=error, agreement=agreement, bytes_ratio=share, seconds=seconds,
        right=packed(logits.argmax(1) == case.y),
    )  # fmt: skip


def make(case: Case, tool: str, small: Path, python: Path) -> tuple[str, float]:
    """Write the smaller file; the tool's version, and the seconds it took.

    Raises:
        ValueError: what the tool says.
    """
    if tool in PEERS:
        told = run_alone([SCRIPT, tool, case.file, small], python, small.parent)
        return told["version"], told["seconds"]
    mean, std = (",".join(map(repr, values)) for values in PIXELS[case.network])
    start = time.perf_counter()
    compress_file(case.file, small, *(["--mean", mean, "--std", std] if tool == OWN else []))
    return version("datafree"), round(time.perf_counter() - start, 1)


def packed(right: Tensor) -> str:
    """(N,) bools in hexadecimal."""
    return np.packbits(right.numpy()).tobytes().hex()


def unpacked(row: Row) -> Tensor:
    """(N,) 100 where the file was right, else 0."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(row.right), np.uint8))[: row.num_images]
    return 100 * torch.from_numpy(bits).double()


def written(folder: Path) -> list[Row]:
    """All rows on file, the last one of each network and tool."""
    return rows_on_file([folder / f"{FILE}.jsonl"], Row, lambda r: r.key)


def page(folder: Path) -> str:
    """Markdown: one table a network, a row for each tool."""
    rows = written(folder)
    tools = [f"- *{tool}*{_version(rows, tool)}: {words}" for tool, words in TOOLS.items()]
    text = [NOTE, "", *tools, "", commits_note(rows)]
    for network in [n for n in NETWORKS if any(r.network == n for r in rows)]:
        text += table([r for r in rows if r.network == network])
    return "\n".join(text) + "\n"


def _version(rows: list[Row], tool: str) -> str:
    found = sorted({r.version for r in rows if r.tool == tool and r.version})
    return f" {', '.join(found)}" if found else ""


def table(rows: list[Row]) -> list[str]:
    """Lines of Markdown: the rows of one network, then why cells are empty."""
    own = next((r for r in rows if r.tool == OWN and not r.skipped), None)
    rows = sorted(rows, key=lambda r: list(TOOLS).index(r.tool))
    head = ["top-1", "lost", "more than ours", "", "bytes", "seconds"]
    body = [[r.tool, *cells(r, own)] for r in rows]
    title = f"\n### {rows[0].network}: float top-1 {rows[0].float_top1:.1f} % on {rows[0].num_images} images\n"
    return [title, *grid(head, body), *(f"\n{r.tool}: {r.skipped}" for r in rows if r.skipped)]


def cells(row: Row, own: Row | None) -> list[str]:
    """What a tool's row holds, the figures that compare it with our file among them."""
    if row.skipped:
        return [f"failed{mark([row])}", *[""] * 5]
    lost = f"{row.lost:.1f} ± {row.lost_error:.1f} ({row.agreement:.0f}){mark([row])}"
    more = beyond(row, own) if row.tool != OWN and own and own.num_images == row.num_images else ("", "")
    return [f"{row.top1:.1f}", lost, *more, f"{100 * (row.bytes_ratio or 0):.0f} %", f"{row.seconds:.0f}"]


def beyond(row: Row, own: Row) -> tuple[str, str]:
    """Points that a file loses beyond ours, and in a word whether ours loses less."""
    more, error = mean_and_error(unpacked(own) - unpacked(row))
    word = "level" if abs(more) <= error else "ours loses less" if more > 0 else "ours loses more"
    return f"{more:.1f} ± {error:.1f}", word


if __name__ == "__main__":
    main()
