"""Names and files -> networks, with what is known of their inputs."""

from datafree.models.load import Normalization, check_weights, input_range, load_model, normalization, provenance

__all__ = [
    "Normalization",
    "check_weights",
    "input_range",
    "load_model",
    "normalization",
    "provenance",
]
