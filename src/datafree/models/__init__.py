"""Names and files -> networks, with what is known of their inputs."""

from datafree.models.load import (
    NATURAL_MEAN,
    NATURAL_STD,
    Normalization,
    check_weights,
    input_range,
    load_model,
    normalization,
    provenance,
    range_of,
)

__all__ = [
    "NATURAL_MEAN",
    "NATURAL_STD",
    "Normalization",
    "check_weights",
    "input_range",
    "load_model",
    "normalization",
    "provenance",
    "range_of",
]
