"""The compressed network: put together, its scales without ties, trained as a whole where that is asked for."""

from datafree.student.assemble import DEQUANTIZE, DEQUANTIZE_ROWS, QUANTIZE
from datafree.student.distill import distill
from datafree.student.distill_images import check_distillation
from datafree.student.fixed_grids import fit_grids_
from datafree.student.qat import TrainableStudent
from datafree.student.remove_channels import remove_channels
from datafree.student.run_once import check_runs
from datafree.student.tie_free_scales import snap_scales

__all__ = [
    "DEQUANTIZE",
    "DEQUANTIZE_ROWS",
    "QUANTIZE",
    "TrainableStudent",
    "check_distillation",
    "check_runs",
    "distill",
    "fit_grids_",
    "remove_channels",
    "snap_scales",
]
