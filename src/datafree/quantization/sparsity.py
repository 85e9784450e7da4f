"""Which weights stay, from a score of each. Numbers only; nothing here knows layers or moments."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

Pattern = tuple[int, int, int]
"""n, m, k: at most n of m neighbouring input channels stay at each of the k places of the kernel."""


def without_least(score: Float[Tensor, "g o n"], count: int, pattern: Pattern | None) -> Bool[Tensor, "g o n"]:
    """True for all but the `count` entries of lowest score; of n:m patterns, only those a cell may still lose."""
    if pattern is not None:
        n, m, _ = pattern
        cells = in_cells(score, pattern)
        spare = cells.argsort(3).argsort(3) < m - n
        score = from_cells(torch.where(spare, cells, torch.inf), pattern)
    lost = score.flatten().topk(count, largest=False, sorted=False).indices
    return torch.ones(score.numel(), dtype=torch.bool).index_fill_(0, lost, False).view_as(score)


def in_cells(x: Num[Tensor, "g o n"], pattern: Pattern) -> Num[Tensor, "g o c m k"]:
    """Taps (channel, place) seen as cells of m channels at one place."""
    _, m, places = pattern
    return x.unflatten(2, (-1, m, places))


def from_cells(x: Num[Tensor, "g o c m k"], pattern: Pattern) -> Num[Tensor, "g o n"]:
    """The inverse of `in_cells`."""
    return x.flatten(2)


def stored_size(num_weights: int, bits: int, num_zeros: int, unit: int = 8) -> int:
    """Units of so many bits that weights take; of sparse ones a bit mask and what stays, if that is less."""
    dense = math.ceil(num_weights * bits / unit)
    return min(dense, math.ceil(num_weights / unit) + math.ceil((num_weights - num_zeros) * bits / unit))
