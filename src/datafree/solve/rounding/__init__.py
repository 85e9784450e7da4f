"""Rounding of one layer's weights: one file a method, one table of them."""

from datafree.solve.rounding.table import ROUNDING, RoundingMethod, rounding_method

__all__ = [
    "ROUNDING",
    "RoundingMethod",
    "rounding_method",
]
