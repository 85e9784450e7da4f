"""Names and files -> networks, with what is known of their inputs."""

from datafree.models.load import (
    Normalization,
    check_weights,
    input_range,
    load_model,
    normalization,
    provenance,
    range_of,
)
from datafree.models.onnx_file import QUANTIZING_OPSET, OnnxNetwork, load_onnx, read_onnx
from datafree.models.plain import dtype_of, plain, unwrapped
from datafree.models.state_dict import ModelError

__all__ = [
    "QUANTIZING_OPSET",
    "ModelError",
    "Normalization",
    "OnnxNetwork",
    "check_weights",
    "dtype_of",
    "input_range",
    "load_model",
    "load_onnx",
    "normalization",
    "plain",
    "provenance",
    "range_of",
    "read_onnx",
    "unwrapped",
]
