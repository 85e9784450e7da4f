"""Numbers only: integer grids, and weights that are zero."""

from datafree.quantization.affine import (
    CLIP_RATIOS,
    dequantize,
    fake_quantize,
    grid,
    quantize,
    rounded_rows,
    search_grid,
)
from datafree.quantization.sparsity import Pattern, in_cells, stored_size, without_least

__all__ = [
    "CLIP_RATIOS",
    "Pattern",
    "dequantize",
    "fake_quantize",
    "grid",
    "in_cells",
    "quantize",
    "rounded_rows",
    "search_grid",
    "stored_size",
    "without_least",
]
