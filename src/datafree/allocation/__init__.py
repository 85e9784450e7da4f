"""How many bits, zeros and channels every layer gets."""

from datafree.allocation.allocate import Allocation, allocate

__all__ = [
    "Allocation",
    "allocate",
]
