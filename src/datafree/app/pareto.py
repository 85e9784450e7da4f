"""The best of a trade-off."""

from __future__ import annotations

from collections.abc import Sequence


def best(costs: Sequence[int | float | None], gains: Sequence[int | float | None]) -> list[bool]:
    """Whether nothing else costs as little and gains as much, one of the two by more; None is never the best."""
    pairs = [None if c is None or g is None else (c, -g) for c, g in zip(costs, gains, strict=True)]
    known = [pair for pair in pairs if pair is not None]
    return [
        pair is not None and not any(o != pair and o[0] <= pair[0] and o[1] <= pair[1] for o in known) for pair in pairs
    ]
