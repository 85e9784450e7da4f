"""What the runtimes that students are made for can do: one row of facts a runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

WEIGHT_RANGE = (
    -127,
    127,
)  # of stored integers, zero_point 0, for every runtime; biases are int32 of the summed products


@dataclass(frozen=True)
class Target:
    """What a runtime takes.

    signed: activations are int8; else uint8.
    zero_points: those of activations may be other than 0; without them, tensors that are never negative lose a bit.
    activation_bits: widths that activations may have.
    one_scale: kinds of layers whose weights share one scale, by name (`graph/layer_types.py`); others, one a channel.
    rounded: "operands" = inputs of layers and operands of sums, concatenations and pooling; "layers" = inputs of layers
        and of sums alone; "everything" = all that an operator gives, the network's outputs too.
    fuses_sums: a layer is computed together with the sum that alone reads it, so that it is not rounded in between.
    fixed_grids: operators that only move or average values have one grid in and out, sigmoid, tanh and softmax one of
        their own, as LiteRT's specification wants it.
    integer_operators: clipping and padding may be written on integers, between quantize and dequantize.
    int32_bias: biases are stored as integers in units of input scale * weight scale; else as float.
    scales_input: the network's input is multiplied by its inverse scale and quantized with scale 1, which gives the
        student's integers to the last one; else it is quantized as any other tensor.
    tuned: the file is laid out for ONNX Runtime's kernels: pixels in blocks, channels in 16s, float weights of layers
        that it computes in float.
    opset: of the file, where none is asked for.
    int4: weights may be stored in 4 bits.
    """

    signed: bool = False
    zero_points: bool = True
    activation_bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    one_scale: tuple[str, ...] = ()
    rounded: Literal["operands", "layers", "everything"] = "operands"
    fuses_sums: bool = False
    fixed_grids: bool = False
    integer_operators: bool = True
    int32_bias: bool = True
    scales_input: bool = True
    tuned: bool = False
    opset: int = 21
    int4: bool = True


USUAL = "onnxruntime"
TARGETS = {
    USUAL: Target(tuned=True),
    "openvino": Target(fuses_sums=True),
    "tensorrt": Target(
        signed=True, zero_points=False, activation_bits=(8,), rounded="layers", fuses_sums=True,
        integer_operators=False, int32_bias=False, scales_input=False, opset=13, int4=False,
    ),
    "arm": Target(
        signed=True, activation_bits=(8,), one_scale=("linear",), rounded="everything", fixed_grids=True,
        scales_input=False, opset=13, int4=False,
    ),
    "generic": Target(),
}  # fmt: skip
