"""ONNX files as networks: read into PyTorch, so that everything else is the same as for a model in Python."""

from datafree.models.onnx_file.graph import QUANTIZING_OPSET, read_onnx
from datafree.models.onnx_file.network import OnnxNetwork, load_onnx

__all__ = ["QUANTIZING_OPSET", "OnnxNetwork", "load_onnx", "read_onnx"]
