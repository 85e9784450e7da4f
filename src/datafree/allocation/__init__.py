"""How many bits, zeros and channels every layer gets."""

from datafree.allocation.allocate import Allocation, allocate
from datafree.allocation.sensitivity import NetworkProbe

__all__ = [
    "Allocation",
    "NetworkProbe",
    "allocate",
]
