"""Numbers only: integer grids, and weights that are zero."""

from datafree.quantization.affine import (
    CLIP_RATIOS,
    choose_qparams,
    dequantize,
    fake_quantize,
    quantize,
    rounded_rows,
    search_grid,
)
from datafree.quantization.sparsity import Pattern, in_cells, stored_size, without_least

__all__ = [
    "CLIP_RATIOS",
    "Pattern",
    "choose_qparams",
    "dequantize",
    "fake_quantize",
    "in_cells",
    "quantize",
    "rounded_rows",
    "search_grid",
    "stored_size",
    "without_least",
]
