"""Run a student's ONNX file in OpenVINO: python examples/openvino_run.py [RUN_DIR]

Its integers are the student's up to the first residual sum: it adds to a convolution's output before rounding it.
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from datafree import Run, export_onnx
from parity import compare, need, open_run


def compiled(run: Run):
    """The student as OpenVINO runs it on a CPU."""
    import openvino

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "net.onnx"  # OpenVINO's PyTorch reader does not know quantized_decomposed
        print(export_onnx(run, path, space_to_depth=False))
        # float32: whatever is no integer would run in bfloat16 on some CPUs
        return openvino.compile_model(openvino.convert_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


if __name__ == "__main__":
    need("openvino", "onnx", "onnxruntime")
    run, images = open_run(sys.argv[1:])
    net = compiled(run)

    def answer(*batch: Tensor) -> list[Tensor]:
        return [torch.from_numpy(values) for values in net([x.numpy() for x in batch]).values()]

    sys.exit(compare(answer, run, images))
