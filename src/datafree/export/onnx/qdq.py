"""Integer grids in ONNX: QuantizeLinear and DequantizeLinear pairs that runtimes turn into integer kernels.

Grids below 8 bits keep their scale and lie in the lower part of uint8; their upper end is a Clip of *integers*, behind
QuantizeLinear. Signed grids are int8. Anything between a layer and its QuantizeLinear would make ONNX Runtime run the
layer in float.
"""

from __future__ import annotations

import numpy as np

from datafree.export.onnx.fusion import Bounds, on_grid
from datafree.export.onnx.shape_operators import pad_sizes
from datafree.export.onnx.writer import Attribute, Call
from datafree.graph import argument, operand
from datafree.solve import quantized_at

FLOAT, INT32 = 1, 6  # onnx.TensorProto
BYTES = {np.uint8: 2, np.int8: 3}
ENDS = {np.uint8: (0, 255), np.int8: (-128, 127)}
INT4 = (-8, 7)
UNBOUNDED = (-np.inf, np.inf)


def quantize(call: Call, x: str, bounds: Bounds | None, *, scales_input: bool = True) -> str:
    """x -> QuantizeLinear, and a clip of the integers where a byte's own ends are not those of the grid or `bounds`.

    Rounding to a grid never reverses an order, so that clip(round(x / scale)) = round(clip(x) / scale), to the bit.

    Args:
        x: name of the value, as it is before the activation that clips it.
        bounds: real values the activation clips to; None = there is none.
        scales_input: the network's input is multiplied first.
    """
    scale, zero_point, low, high = (argument(call.node, n) for n in ("scale", "zero_point", "quant_min", "quant_max"))
    writer, dtype = call.writer, np.int8 if low < 0 else np.uint8
    grid = (
        writer.tensor(f"{call.name}_scale", np.array(scale, np.float32)),
        writer.tensor(f"{call.name}_zero_point", np.array(zero_point, dtype)),
    )
    if scales_input and quantized_at(operand(call.node)).op == "placeholder":
        q = _quantize_image(call, x, scale, grid[1])
    else:
        q = call.emit("QuantizeLinear", x, *grid)
    if bounds is not None or not on_grid(call.node):
        ends = (np.clip(np.round(np.asarray(v) / scale) + zero_point, low, high) for v in bounds or UNBOUNDED)
        q = _clip_integers(call, q, *(np.asarray(v, dtype) for v in ends))
    writer.grids[q] = grid
    return q


def _quantize_image(call: Call, x: str, scale: float, zero_point: str) -> str:
    """Integers of x / scale as the student rounds them, which multiplies with the inverse of the scale.

    QuantizeLinear divides: another integer for one pixel in 10^6, which layer after layer turns into 40 dB (ours).
    """
    inverse = call.writer.tensor(f"{call.name}_inverse_scale", np.array(1.0 / scale, np.float32))
    unit = call.writer.tensor(f"{call.name}_unit_scale", np.array(1.0, np.float32))
    return call.emit("QuantizeLinear", call.emit("Mul", x, inverse, step="in_steps"), unit, zero_point)


def _clip_integers(call: Call, q: str, low: np.ndarray, high: np.ndarray) -> str:
    """Bytes clipped to ends of their own, one for all or one for each channel; nothing where a byte ends there too.

    Ends of channels are met by 32-bit integers: ONNX Runtime before 1.24 has no minimum of bytes.
    """
    ends = [v.flat[:1].reshape(()) if (v == v.flat[0]).all() else v for v in (low, high)]
    kind = low.dtype.type
    if all(v.ndim == 0 for v in ends):
        if tuple(ends) == ENDS[kind]:
            return q
        return call.emit("Clip", q, *map(call.writer.constant, ends), step="clipped")
    low, high = (np.asarray(v, np.int32) for v in ends)
    wide = call.emit("Cast", q, to=INT32, step="wide")
    if (low > ENDS[kind][0]).any():
        wide = call.emit("Max", wide, call.writer.constant(low), step="raised")
    wide = call.emit("Min", wide, call.writer.constant(high), step="clipped")
    return call.emit("Cast", wide, to=BYTES[kind], step="bytes")


def requantize(call: Call, x: str, q: str) -> str:
    """Values that are on the grid of `q` already, as integers of it."""
    made = call.emit("QuantizeLinear", x, *call.writer.grids[q])
    call.writer.grids[made] = call.writer.grids[q]
    return made


def pad(call: Call, q: str) -> str:
    """Integers padded with their zero_point, which is what zero is on every grid."""
    writer, padding = call.writer, operand(call.node)
    padded = call.emit("Pad", q, pad_sizes(call, argument(padding, "pad")), writer.grids[q][1], mode="constant")
    writer.grids[padded] = writer.grids[q]
    return padded


def dequantize(call: Call, q: str) -> str:
    """The way back, on the grid of the quantize node that gave `q`."""
    return call.emit("DequantizeLinear", q, *call.writer.grids[q])


def parameter(call: Call, path: str, stored: np.ndarray, scale: np.ndarray, *, int4: bool) -> str:
    """Stored integers -> DequantizeLinear. Weights are int8 (or int4 where they fit and it is asked for), biases int32.

    Args:
        stored: int8 (C_out, ...) or int32 (C_out,).
        scale: float32, () or (C_out,).
        int4: store weights in four bits where every row spans no more than 16 steps; rows that reach beyond
            -8..7 get a zero_point, which changes no value.
    """
    writer, weight = call.writer, stored.dtype == np.int8
    scale_name = writer.tensor(f"{path}_scale", scale)
    offsets = four_bit_offsets(stored, rows=scale.ndim == 1) if int4 and weight else None
    if offsets is not None:
        moved = stored + offsets.reshape(-1, *[1] * (stored.ndim - 1))
        names = [writer.int4(path, moved), scale_name, writer.int4(f"{path}_zero_point", offsets)]
    else:
        names = [writer.tensor(path, stored), scale_name]
        if weight:  # a bias has none: ONNX says so of int32. Each its own: ONNX Runtime rewrites them where it needs to
            names.append(writer.tensor(f"{path}_zero_point", np.zeros_like(scale, np.int8)))
    axis: dict[str, Attribute] = {"axis": 0} if scale.ndim else {}
    return call.writer.emit("DequantizeLinear", names, call.name, axis)[0]


def float_parameter(call: Call, path: str, stored: np.ndarray, scale: np.ndarray) -> str:
    """Stored integers -> Cast -> Mul, of a layer that runs in float.

    The same values as DequantizeLinear gives, which ONNX Runtime would compute in every run: it folds these two when it
    opens the file, and takes its fastest float kernels (ours: twice as fast on efficientnet_b0).
    """
    rows = scale.reshape(-1, *[1] * (stored.ndim - 1)) if scale.ndim else scale
    cast = call.emit("Cast", call.writer.tensor(path, stored), to=FLOAT, step="float")
    return call.emit("Mul", cast, call.writer.tensor(f"{path}_scale", rows))


def four_bit_offsets(values: np.ndarray, *, rows: bool) -> np.ndarray | None:
    """Zero points (C_out,) or () that bring int8 weights into -8..7; zeros where they lie there, None where none do."""
    flat = values.reshape(len(values) if rows else 1, -1)
    low, high = np.minimum(flat.min(1), 0).astype(np.int64), np.maximum(flat.max(1), 0).astype(np.int64)
    if (high - low > INT4[1] - INT4[0]).any():
        return None
    fits = (low >= INT4[0]) & (high <= INT4[1])
    return np.where(fits, 0, INT4[0] - low).reshape(-1 if rows else ())
