"""ONNX files in quantize/dequantize form, checked by running them."""
