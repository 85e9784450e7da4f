"""A layer's problem on its way to where it is solved, with its moments or with what they are gathered from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from datafree.graph import row_size
from datafree.records import Layer, Moments, MomentsError, QParams
from datafree.solve.jobs import LayerError, LayerJob
from datafree.solve.moments import block_size, gather_moments, merged, shrunk

MACS_A_BYTE = 32  # that a thread does while a byte travels (ours: 30 billion a second, 1 GB/s)


@dataclass(frozen=True)
class Gathering:
    """What the moments of one layer's input are gathered from, as `gather_moments` takes it."""

    x: Tensor
    layer: Layer
    at: Int[Tensor, "r d"]
    qparams: QParams | None
    full: bool
    student_x: Tensor | None

    def moments(self) -> tuple[Moments, tuple[Moments, Moments] | None]:
        """Moments of the input; and, where the student's inputs are its own, of both halves of the images."""
        asked = {"qparams": self.qparams, "full": self.full, "student_x": self.student_x}
        gather, at = partial(gather_moments, self.x, self.layer, **asked), self.at
        if self.student_x is None or len(at) < 2:
            return shrunk(gather(at)), None
        first, second = (gather(half) for half in at[torch.argsort(at[:, 0], stable=True)].tensor_split(2))
        return shrunk(merged(first, second)), (first, second)

    @property
    def takes_longer_than_moving(self) -> bool:
        """Whether the input is elsewhere before the moments are gathered here (ours)."""
        columns = row_size(self.x.shape, self.layer)
        taps = block_size(columns // self.layer.groups, self.layer.kernel_size) if self.full else 1
        return len(self.at) * columns * taps > MACS_A_BYTE * self.x.nbytes


@dataclass(frozen=True)
class PendingJob:
    """A layer's job but for the moments of its input, picklable. make: moments, moment_halves -> the job."""

    name: str
    make: Callable[..., LayerJob]
    source: Gathering | Moments

    def job(self) -> LayerJob:
        """The job with its moments.

        Raises:
            LayerError: the layer's inputs are not finite.
        """
        if isinstance(self.source, Moments):
            return self.make(moments=self.source)
        try:
            moments, halves = self.source.moments()
        except MomentsError as error:
            raise LayerError(f"{self.name}: {error}") from None
        return self.make(moments=moments, moment_halves=halves)

    def packed(self) -> PendingJob | LayerJob:
        """For wherever it is solved: with the input where its moments are dear, else with them."""
        source = self.source
        if not isinstance(source, Gathering) or not source.takes_longer_than_moving:
            return self.job()
        is_part = source.x.untyped_storage().nbytes() > source.x.nbytes  # a pickle would hold the rest, too
        return replace(self, source=replace(source, x=source.x.clone())) if is_part else self
