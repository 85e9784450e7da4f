"""One layer's problem and the schedule of all: moments of its inputs, grids, rounding, zeros, bias."""

from datafree.solve.activation_grids import tensor_grid
from datafree.solve.coarse_inputs import coarse_inputs
from datafree.solve.jobs import LayerError, LayerJob
from datafree.solve.mending import floor_db
from datafree.solve.moments import MAX_TAPS, shrunk
from datafree.solve.network_probe import NetworkProbe, Probe
from datafree.solve.plan import WIDE, LayerPlan, Plan, fused_operand, plan_layers, quantized_at, wide_operands
from datafree.solve.problem import Grids, Problem, Solution
from datafree.solve.pruning import count_schedule, inverse, thinned
from datafree.solve.rounding import ROUNDING, RoundingMethod, rounding_method
from datafree.solve.rounding.gptq import damped
from datafree.solve.schedule import Pool, solve_layers
from datafree.solve.solve_layer import NUM_ROWS, compress_layer, layer_jobs, solver_context
from datafree.solve.weight_grids import output_power, solve_on_best_grid

__all__ = [
    "MAX_TAPS",
    "NUM_ROWS",
    "ROUNDING",
    "WIDE",
    "Grids",
    "LayerError",
    "LayerJob",
    "LayerPlan",
    "NetworkProbe",
    "Plan",
    "Pool",
    "Probe",
    "Problem",
    "RoundingMethod",
    "Solution",
    "coarse_inputs",
    "compress_layer",
    "count_schedule",
    "damped",
    "floor_db",
    "fused_operand",
    "inverse",
    "layer_jobs",
    "output_power",
    "plan_layers",
    "quantized_at",
    "rounding_method",
    "shrunk",
    "solve_layers",
    "solve_on_best_grid",
    "solver_context",
    "tensor_grid",
    "thinned",
    "wide_operands",
]
