"""The float network: BatchNorm read and folded, ranges equalized."""

from datafree.teacher.batchnorm import fold_batchnorm_
from datafree.teacher.equalize import channel_ranges, equalize_
from datafree.teacher.slim import is_left_out, slim

__all__ = [
    "channel_ranges",
    "equalize_",
    "fold_batchnorm_",
    "is_left_out",
    "slim",
]
