"""A finished compression: in memory and on disk, evaluated, its cost and its agreement predicted."""

from datafree.run.estimate import estimate, with_estimate
from datafree.run.evaluate import Evaluation, costs, evaluate_models
from datafree.run.graph_json import graph_from_json, graph_to_json, tensors_of
from datafree.run.record import Run, RunError, check_free, evaluate, images_of

__all__ = [
    "Evaluation",
    "Run",
    "RunError",
    "check_free",
    "costs",
    "estimate",
    "evaluate",
    "evaluate_models",
    "graph_from_json",
    "graph_to_json",
    "images_of",
    "tensors_of",
    "with_estimate",
]
