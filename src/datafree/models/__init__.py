"""Names and files -> networks, with what is known of their inputs."""

from datafree.models.load import (
    LIBRARIES,
    Normalization,
    check_weights,
    input_range,
    load_model,
    normalization,
    provenance,
    range_of,
)
from datafree.models.onnx_file import (
    QUANTIZING_OPSET,
    OnnxNetwork,
    check_node,
    files_of,
    load_onnx,
    num_file_bytes,
    read_onnx,
    read_weights_,
)
from datafree.models.pickled import from_bytes, to_bytes
from datafree.models.plain import dtype_of, plain, unwrapped
from datafree.models.state_dict import ModelError

__all__ = [
    "LIBRARIES",
    "QUANTIZING_OPSET",
    "ModelError",
    "Normalization",
    "OnnxNetwork",
    "check_node",
    "check_weights",
    "dtype_of",
    "files_of",
    "from_bytes",
    "input_range",
    "load_model",
    "load_onnx",
    "normalization",
    "num_file_bytes",
    "plain",
    "provenance",
    "range_of",
    "read_onnx",
    "read_weights_",
    "to_bytes",
    "unwrapped",
]
