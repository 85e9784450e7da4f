"""One peer on one network, in the peer's own environment: quantize, run, write logits.

    cd work; python one.py nncf . --calibration probes.npy --per channel --bits 8

`work` holds the network as a graph of plain PyTorch modules (model.pt) and the images to run (images.npy). Writes
logits.npy there and prints one line of JSON: the peer's version and the seconds it took to quantize. What a peer writes
on the way is left in the current folder.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

PACKAGES = {  # peer -> what pip calls it; the code is in with_<peer>.py
    "aimet": "aimet-torch", "brevitas": "brevitas", "mct": "model-compression-toolkit", "nncf": "nncf",
    "onnxruntime": "onnxruntime", "onnxsim": "onnxsim",
}  # fmt: skip
BATCH = 32


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    keep = _torchvision_schemas()
    peer = importlib.import_module(f"with_{options.peer}")
    model = torch.load(options.work / "model.pt", weights_only=False).eval()
    images = None if options.calibration is None else torch.from_numpy(np.load(options.calibration))
    x = np.load(options.work / "images.npy", mmap_mode="r")
    start = time.perf_counter()
    run = peer.quantized(model, images, bits=options.bits, per=options.per, example=torch.from_numpy(x[:1].copy()))
    seconds = time.perf_counter() - start
    with torch.no_grad():
        parts = [np.asarray(run(torch.from_numpy(x[i : i + BATCH].copy()))) for i in range(0, len(x), BATCH)]
    np.save(options.work / "logits.npy", np.concatenate(parts))
    print(json.dumps({"version": version(PACKAGES[options.peer]), "seconds": round(seconds, 1)}))
    del keep


def _torchvision_schemas() -> torch.library.Library:
    """Operators that torchvision's wheel expects to find, for peers that import it beside a CPU build of PyTorch."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=list(PACKAGES))
    parser.add_argument("work", type=Path)
    parser.add_argument("--calibration", type=Path, help="images (N, C, H, W) float32; left out = none")
    parser.add_argument("--bits", type=int, default=8, help="of the weights; activations have 8")
    parser.add_argument("--per", default="channel", choices=["channel", "tensor"])
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
