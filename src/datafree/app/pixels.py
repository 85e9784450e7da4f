"""How a run's pixels are normalised, kept beside it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from datafree.execution import atomic_write
from datafree.models import Normalization
from datafree.run import RunError

PIXELS = "pixels.json"  # in a run directory: how the network's pixels are normalised, where that is published


def write_pixels(directory: Path, published: Normalization | None) -> None:
    if published is not None:
        with atomic_write(directory / PIXELS) as place:
            place.write_text(json.dumps(asdict(published), indent=2))


def read_pixels(directory: Path, num_channels: int) -> Normalization | None:
    """The published normalisation of the network that was compressed, where there is one for its channels."""
    if not (directory / PIXELS).is_file():
        return None
    try:
        fields = json.loads((directory / PIXELS).read_text())
        found = Normalization(tuple(map(float, fields["mean"])), tuple(map(float, fields["std"])), fields["source"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise RunError(f"{directory / PIXELS} is damaged: {error}; give --mean and --std, or compress again") from None
    return found if len(found.mean) == len(found.std) == num_channels else None
