"""Ranges of weights before and after equalization."""

from __future__ import annotations

from dataclasses import dataclass

from datafree.records import ChannelRanges
from datafree.run import Run
from datafree.teacher import channel_ranges


@dataclass(frozen=True)
class RangeRow:
    """One layer's output channels; before is None where nothing was equalized."""

    before: ChannelRanges | None
    after: ChannelRanges


def range_rows(run: Run) -> list[RangeRow]:
    """One row a layer, in the order they run in."""
    before = {found.name: found for found in run.summary.equalization.ranges_before}
    return [RangeRow(before.get(found.name), found) for found in channel_ranges(run.teacher)]
