"""The network that a command is about, and what the user says of its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from datafree.app.arguments import given_pixels, parse_numbers, parse_shape
from datafree.app.given_images import range_given
from datafree.app.uncollected import uncollected
from datafree.models import Normalization, load_model, normalization, provenance
from datafree.records import InputRange


@dataclass(frozen=True)
class Opened:
    """A network by name.

    origin: where it and its weights came from, in a line.
    pixels: how its pixels are normalised, as the user says or as published; None = not known.
    known: what it sees of natural images, where the user said how they are normalised.
    """

    network: nn.Module
    example: Tensor | tuple[Tensor, ...]
    origin: str
    pixels: Normalization | None
    known: InputRange | None


def open_network(
    model: str,
    *,
    weights: Path | None,
    pretrained: bool,
    input_shape: str | None,
    mean: str | None = None,
    std: str | None = None,
) -> Opened:
    """Build the network from what the command line says of it.

    Raises:
        ValueError: one of the arguments is wrong; says which.
    """
    shape = parse_shape(input_shape)
    with uncollected(for_good=True):
        network, example = load_model(model, weights=weights, pretrained=pretrained, input_shape=shape)
    used = given_pixels(parse_numbers(mean), parse_numbers(std))
    known = range_given(used, example if isinstance(example, Tensor) else example[0]) if used else None
    origin = provenance(model, weights, pretrained=pretrained)
    return Opened(network, example, origin, used or normalization(network), known)
