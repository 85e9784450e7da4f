"""One peer on one ONNX file, in the peer's own environment, given no image.

    cd work; python one_file.py onnxsim float.onnx small.onnx

Writes the second file and prints one line of JSON: the peer's version and the seconds it took. What a peer writes on
the way is left in the current folder.
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

WAYS = {  # name -> what pip calls the package, the script here, its function
    "onnxsim": ("onnxsim", "with_onnxsim", "file"),
    "modelopt": ("nvidia-modelopt", "with_modelopt", "file"),
    "modelopt, fp32": ("nvidia-modelopt", "with_modelopt", "float32_file"),
    "onnxruntime, dynamic": ("onnxruntime", "with_onnxruntime", "dynamic_file"),
    "onnxruntime, dynamic, unsigned": ("onnxruntime", "with_onnxruntime", "dynamic_unsigned_file"),
    "onnxruntime, uniform noise": ("onnxruntime", "with_onnxruntime", "uniform_noise_file"),
    "onnxruntime, normal noise": ("onnxruntime", "with_onnxruntime", "normal_noise_file"),
    "quark, U8S8_AAWS": ("amd-quark", "with_quark", "u8s8_file"),
    "quark, XINT8": ("amd-quark", "with_quark", "xint8_file"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=list(WAYS))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    np.random.seed(options.seed)  # ModelOpt and Quark draw their images here
    package, script, function = WAYS[options.way]
    write = getattr(importlib.import_module(script), function)
    start = time.perf_counter()
    write(options.source, options.target)
    print(json.dumps({"version": version(package), "seconds": round(time.perf_counter() - start, 1)}))


if __name__ == "__main__":
    main()
