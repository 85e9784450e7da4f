"""ONNX files as networks: read into PyTorch, so that everything else is the same as for a model in Python."""

from datafree.models.onnx_file.float_nodes import check_node
from datafree.models.onnx_file.graph import QUANTIZING_OPSET, read_onnx
from datafree.models.onnx_file.network import OnnxNetwork, load_onnx
from datafree.models.onnx_file.weight_files import files_of, num_file_bytes, read_weights_

__all__ = [
    "QUANTIZING_OPSET",
    "OnnxNetwork",
    "check_node",
    "files_of",
    "load_onnx",
    "num_file_bytes",
    "read_onnx",
    "read_weights_",
]
