"""Round to nearest: what every other solver has to beat."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from datafree.quantization import quantize
from datafree.records import QParams
from datafree.solve.jobs import LayerJob


def nearest(job: LayerJob, qparams: QParams) -> Float[Tensor, "g o n"]:
    """Round every weight to the nearest integer of its grid."""
    return quantize(job.weight.flatten(0, 1), qparams).view_as(job.weight)
