"""A finished compression: in memory and on disk, evaluated, its cost and its agreement predicted."""

from datafree.run.contact_sheet import contact_sheet, png
from datafree.run.cost import layer_bytes
from datafree.run.estimate import EFFORTS, estimate, with_estimate
from datafree.run.evaluate import Evaluation, evaluate_models, layer_sqnr
from datafree.run.expected import MemoryLimitError, expected_work, room_within
from datafree.run.graph_json import graph_from_json, graph_to_json, tensors_of
from datafree.run.record import Run, RunError, check_free, evaluate, images_of
from datafree.run.summary import Steps, lost_inputs, summarize, warnings_of

__all__ = [
    "EFFORTS",
    "Evaluation",
    "MemoryLimitError",
    "Run",
    "RunError",
    "Steps",
    "check_free",
    "contact_sheet",
    "estimate",
    "evaluate",
    "evaluate_models",
    "expected_work",
    "graph_from_json",
    "graph_to_json",
    "images_of",
    "layer_bytes",
    "layer_sqnr",
    "lost_inputs",
    "png",
    "room_within",
    "summarize",
    "tensors_of",
    "warnings_of",
    "with_estimate",
]
