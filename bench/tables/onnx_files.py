"""Networks of timm by way of an ONNX file: exported, read back, captured; the same function, or refused by name.

    pip install onnxscript                  # for PyTorch's new exporter
    python -m bench.tables.onnx_files

Weights are random, images 64 x 64. Differences are the largest ones as a share of the output's range. Writes JSON lines
(bench/results/onnx_files.jsonl) and bench/results/onnx_files.md; pairs there that current code made are not made again.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.rows import RESULTS, add_missing, commits_note, is_row_current, mark, rows_on_file
from datafree import graph as g
from datafree import load_model
from datafree.graph import trace

FILE = "onnx_files"
KEPT, FOLDED, NEW = "old, BatchNorm kept", "old, folded", "new"
SIZE = 64
SAME = 1e-5  # of the output's range
NETWORKS = [
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "seresnet50",
    "res2net50_14w_8s",
    "resnest14d",
    "resnetv2_50",
    "densenet121",
    "vgg11_bn",
    "vgg11",
    "mobilenetv1_100",
    "mobilenetv2_100",
    "mobilenetv3_small_100",
    "mobilenetv3_large_100",
    "mnasnet_100",
    "efficientnet_b0",
    "efficientnet_lite0",
    "tf_efficientnet_lite0",
    "tf_efficientnetv2_b0",
    "fbnetc_100",
    "hardcorenas_a",
    "ghostnet_100",
    "mixnet_s",
    "regnetx_002",
    "regnety_002",
    "repvgg_a0",
    "convnext_atto",
    "dla34",
    "hrnet_w18_small",
    "cspresnet50",
    "cspdarknet53",
    "darknet53",
    "lcnet_050",
    "tinynet_e",
    "rexnet_100",
    "semnasnet_075",
    "spnasnet_100",
    "selecsls42b",
    "skresnet18",
    "gernet_s",
    "nf_resnet50",
    "ese_vovnet19b_dw",
    "inception_v3",
    "xception41",
    "vit_tiny_patch16_224",
]
NOTE = """Networks of timm with random weights, 64 x 64 pixels, exported by PyTorch and read back as a file alone: the
largest difference of the outputs, as a share of their range, of the network read and of its captured graph (in
brackets); or why it is refused. *old*: `torch.onnx.export(dynamo=False)`, BatchNorm kept or folded; *new*:
`dynamo=True`."""


@dataclass(frozen=True)
class FileRow:
    """One network and exporter; refused: why, "" = it was read."""

    network: str
    exporter: str
    difference: float | None
    captured: float | None
    num_layers: int
    refused: str
    commit: str = ""

    @property
    def cell(self) -> str:
        """Both differences, or why there are none."""
        if self.difference is None or self.captured is None:
            return self.refused
        return f"{self.difference:.0e} ({self.captured:.0e})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--exporters", nargs="+", default=[KEPT, FOLDED, NEW], choices=[KEPT, FOLDED, NEW])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    done = {(row.network, row.exporter) for row in rows(options.out) if is_row_current(row)}
    asked = [((n, e), partial(measured, n, e)) for n in options.networks for e in options.exporters]
    add_missing(options.out / f"{FILE}.jsonl", asked, done)
    (options.out / f"{FILE}.md").write_text(page(options.out))


def rows(folder: Path) -> list[FileRow]:
    return rows_on_file([folder / f"{FILE}.jsonl"], FileRow, lambda row: (row.network, row.exporter))


def measured(network: str, exporter: str) -> FileRow:
    """Export one network and read it back."""
    torch.manual_seed(0)
    model, example = load_model(f"timm:{network}")
    assert isinstance(example, Tensor), "networks of timm have one input"
    x = 2 * torch.rand(1, example.shape[1], *(2 * [SIZE] if "vit" not in network else example.shape[2:])) - 1
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.weight is not None and module.running_mean is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(scratch) / "net.onnx"
        try:
            exported(model, x, path, exporter)
        except Exception as error:  # the exporters' own
            return FileRow(network, exporter, None, None, 0, f"not exported: {type(error).__name__}")
        try:
            read, example = load_model(str(path), input_shape=tuple(x.shape))
        except ValueError as error:
            return FileRow(network, exporter, None, None, 0, str(error).replace(str(path), "file")[:200])
        graph = trace(read, example)
    with torch.no_grad():
        wanted, found, captured = model(x), read(x), graph(torch.cat([x, x]))[:1]
    return FileRow(network, exporter, far(found, wanted), far(captured, wanted), len(g.layers(graph)), "")


def exported(model: nn.Module, x: Tensor, path: Path, exporter: str) -> None:
    """Write the file as one of PyTorch's exporters does, the batch open."""
    names = {"input_names": ["images"], "output_names": ["logits"], "verbose": False}
    if exporter == NEW:
        sizes = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(model, (x,), path, dynamo=True, dynamic_shapes=sizes, **names)
        return
    mode = torch.onnx.TrainingMode.PRESERVE if exporter == KEPT else torch.onnx.TrainingMode.EVAL
    axes = {"images": {0: "batch"}, "logits": {0: "batch"}}
    torch.onnx.export(
        model, (x,), path, dynamo=False, training=mode, do_constant_folding=exporter == FOLDED, dynamic_axes=axes,
        opset_version=17, **names,
    )  # fmt: skip


def far(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / (wanted.max() - wanted.min()).clamp(min=1e-9))


def page(folder: Path) -> str:
    """One row a network."""
    made = {(row.network, row.exporter): row for row in rows(folder)}
    exporters = [e for e in (KEPT, FOLDED, NEW) if any(e == exporter for _, exporter in made)]
    read = [row for row in made.values() if row.difference is not None]
    same = sum(max(row.difference or 0, row.captured or 0) <= SAME for row in read)
    lines = [NOTE, "", f"{len(made)} files: {len(read)} read, {same} of these within {SAME:g}.", ""]
    lines += [f"| network | layers | {' | '.join(exporters)} |", f"|---|---{'|---' * len(exporters)}|"]
    for network in dict.fromkeys(name for name, _ in made):
        cells = [made.get((network, exporter)) for exporter in exporters]
        layers = max(row.num_layers for row in cells if row)
        shown = [f"{row.cell}{mark([row])}" if row else "-" for row in cells]
        lines.append(f"| {network} | {layers or ''} | {' | '.join(shown)} |")
    return "\n".join([*lines, "", commits_note(made.values()), ""])


if __name__ == "__main__":
    main()
