"""Brevitas: equalize, quantize, calibrate, correct biases, as its classification example does."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from brevitas.graph.calibrate import bias_correction_mode, calibration_mode
from brevitas.graph.quantize import layerwise_quantize, preprocess_for_quantize
from brevitas_examples.imagenet_classification.ptq.ptq_common import create_quant_maps, quantize_model
from torch import Tensor, fx, nn


def quantized(
    model: fx.GraphModule, images: Tensor | None, *, bits: int, per: str, example: Tensor
) -> Callable[[Tensor], Tensor]:
    """Equalize, then choose ranges of tensors on images and correct the mean of every layer's output on them.

    Without images, a layer's input is quantized by its own range, at every call, and nothing is corrected.
    """
    clipped = any(isinstance(module, nn.ReLU6) for module in model.modules())
    ready = preprocess_for_quantize(
        strides_as_pooling(model), relu6_to_relu=False, equalize_iters=20, equalize_merge_bias=True
    )
    if images is None:
        student = layerwise(ready, bits, per, "dynamic")
        return lambda x: torch.cat([student(image) for image in x.split(1)])  # scales a tensor fail on more at a time
    student = layerwise(ready, bits, per, "static") if clipped else whole(ready, bits, per)
    with torch.no_grad():
        for mode in (calibration_mode, bias_correction_mode):
            with mode(student):
                for part in images.split(32):
                    student(part)
    return student


def whole(model: fx.GraphModule, bits: int, per: str) -> nn.Module:
    """Layers, activations and sums. A ReLU6 would become a ReLU, which is another network."""
    return quantize_model(
        model, backend="fx", weight_bit_width=bits, act_bit_width=8, bias_bit_width=32,
        weight_quant_granularity=f"per_{per}", act_quant_percentile=99.999, act_quant_type="sym",
        scale_factor_type="float_scale", quant_format="int",
    )  # fmt: skip


def layerwise(model: fx.GraphModule, bits: int, per: str, ranges: str) -> nn.Module:
    """Layers and their inputs; sums stay in float. As its `quantize_model` does, which keeps the first layer at 8 bits.

    Args:
        ranges: static or dynamic.
    """
    maps = create_quant_maps(
        dtype=torch.float32, bias_bit_width=None, weight_bit_width=bits, act_bit_width=8,
        weight_param_method="stats", weight_scale_type="float_scale", weight_quant_type="sym",
        weight_quant_granularity=f"per_{per}", weight_narrow_range=False, weight_quant_format="int",
        act_param_method="stats", act_scale_type="float_scale", act_quant_type="asym", act_quant_percentile=99.999,
        act_quant_granularity="per_tensor", act_quant_format="int", act_scale_computation_type=ranges,
    )  # fmt: skip
    return layerwise_quantize(model, compute_layer_map=maps[1])


def strides_as_pooling(model: fx.GraphModule) -> fx.GraphModule:
    """x[:, :, ::2, ::2] as a pooling over one pixel: its quantized tensors are named tuples and cannot be sliced."""
    every = slice(None)
    for node in list(model.graph.nodes):
        if node.target is operator.getitem and isinstance(node.args[1], tuple) and node.args[1][:2] == (every, every):
            name, strides = f"{node.name}_pool", tuple(s.step or 1 for s in node.args[1][2:])
            model.add_submodule(name, nn.MaxPool2d(1, strides))
            with model.graph.inserting_before(node):
                node.replace_all_uses_with(model.graph.call_module(name, (node.args[0],)))
            model.graph.erase_node(node)
    model.recompile()
    return model
