"""How many bits, zeros and channels every layer gets."""

from datafree.allocation.budget import spend
from datafree.allocation.channels import choose_channels, without_channels
from datafree.allocation.sparsity import allocate

__all__ = [
    "allocate",
    "choose_channels",
    "spend",
    "without_channels",
]
