"""What peers of ONNX share: a network as a file, and a file as a function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn


def written(model: nn.Module, example: Tensor, path: Path) -> Path:
    """The float network by PyTorch's own exporter: input "x", any number of images."""
    torch.onnx.export(
        model, (example.repeat(2, 1, 1, 1),), path, input_names=["x"], dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("n")},), external_data=False, opset_version=21, verbose=False,
    )  # fmt: skip
    return path


def in_onnxruntime(file: str | bytes) -> Callable[[Tensor], np.ndarray]:
    """A file's first output, on one thread."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # else x86 without VNNI saturates
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x.numpy()})[0]
