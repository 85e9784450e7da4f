"""Errors of one layer at which its effect on the network's output is measured (ours)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from datafree.solve import LayerJob, Probe

PROBED = (0.02, 0.1, 0.3, 0.6)  # errors of a layer at which its effect on the network's output is measured


def nearest_probes(job: LayerJob, errors: Sequence[float], weights: Sequence[Tensor]) -> tuple[Probe, ...]:
    """Those of the weights tried whose errors lie nearest to the errors to look at; means are made up for."""
    chosen = {min(range(len(errors)), key=lambda i, wanted=wanted: abs(errors[i] - wanted)) for wanted in PROBED}
    shift = lambda w: torch.einsum("gon,gn->go", job.weight - w, job.moments.mean).flatten()  # noqa: E731
    return tuple(Probe(job.name, errors[i], weights[i], shift(weights[i])) for i in sorted(chosen))
