"""A layer's inputs as columns: what each output position is made of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from datafree.execution import is_in_file, put_away
from datafree.graph.layer_types import type_of
from datafree.records import Layer

CHUNK = 2**24  # elements of unfolded input held at once
CHUNK_OF_FILE = 2**21  # the same of an input that lies in a file, where there is little memory


def output_size(x_shape: Sequence[int], layer: Layer) -> tuple[int, ...]:
    """Images and sides of the layer's output; a linear layer has one position for each of its input vectors."""
    kind = type_of(layer)
    if not kind.rank:
        return (math.prod(x_shape[:-1]),)
    return x_shape[0], *(kind.output_side(layer, dim, side) for dim, side in enumerate(x_shape[2:]))


def positions(x_shape: Sequence[int], layer: Layer, count: int, seed: int) -> Int[Tensor, "r d"]:
    """Up to `count` output positions (image, row, column) drawn at random; all of them where there are no more."""
    size = output_size(x_shape, layer)
    total = math.prod(size)
    generator = torch.Generator().manual_seed(seed)
    flat = torch.arange(total) if total <= count else torch.randint(total, (count,), generator=generator)
    return torch.stack(torch.unravel_index(flat, size), 1)


def unfold(x: Tensor, layer: Layer, at: Int[Tensor, "r d"]) -> Float[Tensor, "r g n"]:
    """The input columns the layer sees at the given output positions, n = taps of one output channel.

    Args:
        x: the layer's input, (N, C_in, H, W), (N, C_in, L) or (..., C_in).
    """
    if not type_of(layer).rank:
        found = x.reshape(-1, layer.groups, x.shape[-1] // layer.groups)[at[:, 0]]
        put_away(x)
        return found
    places, inside = _taps(layer, x.shape[2:], at[:, 1:])
    is_bordered = not bool(inside.all())
    if places.shape[1] == 1 and not is_bordered and not is_in_file(x):
        return x.flatten(2)[at[:, 0], :, places[:, 0]].reshape(len(at), layer.groups, -1)
    places = torch.where(inside, places, 0)
    found = x.new_empty(len(at), x.shape[1], places.shape[1])
    for image, own in _by_image(at[:, 0]):  # one image after another, plane by plane: memory is read in order
        taken = x[image].flatten(1).index_select(1, places[own].flatten())
        found[own] = taken.view(x.shape[1], len(own), -1).transpose(0, 1)
        put_away(x)
    if is_bordered:
        found.masked_fill_(~inside[:, None], 0)
    return found.reshape(len(at), layer.groups, -1)


def chunks(x: Tensor, layer: Layer, at: Int[Tensor, "r d"]) -> Iterator[Float[Tensor, "r g n"]]:
    """Unfolded columns in pieces of bounded size."""
    return (unfold(x, layer, part) for part in split_rows(x, layer, at))


def split_rows(x: Tensor, layer: Layer, at: Int[Tensor, "r d"]) -> tuple[Int[Tensor, "p d"], ...]:
    """Output positions in pieces whose unfolded columns are of bounded size."""
    size = CHUNK_OF_FILE if is_in_file(x) else CHUNK
    return at.split(max(1, size // row_size(x.shape, layer)))


def row_size(x_shape: Sequence[int], layer: Layer) -> int:
    """Elements of the unfolded input at one position, all groups."""
    return x_shape[type_of(layer).channel_axis] * math.prod(layer.kernel)


def taps_inside(layer: Layer, sides: Sequence[int], pads: Sequence[int] = ()) -> Float[Tensor, "p t"]:
    """1 where a tap of the kernel lies inside the image, for every output position.

    Args:
        sides: height and width of the image.
        pads: zeros around it besides the layer's own: left, right, top, bottom.
    """
    before, after = ([*pads[start::2][::-1]] or [0] * len(sides) for start in (0, 1))
    padded = [sum(side) for side in zip(before, sides, after, strict=True)]
    shape = (1, 1, *padded)
    at = positions(shape, layer, math.prod(output_size(shape, layer)), 0)
    return _taps(layer, sides, at[:, 1:], before)[1].float()


def _taps(
    layer: Layer, sides: Sequence[int], at: Int[Tensor, "r d"], before: Sequence[int] = ()
) -> tuple[Int[Tensor, "r t"], Bool[Tensor, "r t"]]:
    """Where the taps of output positions lie in the flattened image, and which of them lie inside it at all."""
    places, inside = torch.zeros(len(at), 1, dtype=torch.long), torch.ones(len(at), 1, dtype=torch.bool)
    for dim, side in enumerate(sides):
        taps = torch.arange(layer.kernel[dim])
        along = type_of(layer).places(layer, dim, at[:, dim], taps) - (before[dim] if before else 0)
        there = (along >= 0) & (along < side)
        places = (places[:, :, None] * side + along[:, None]).flatten(1)
        inside = (inside[:, :, None] & there[:, None]).flatten(1)
    return places, inside


def _by_image(images: Int[Tensor, " r"]) -> Iterator[tuple[int, Int[Tensor, " s"]]]:
    """Every image that occurs, with the places where it does."""
    numbers, counts = images.unique(return_counts=True)
    return zip(numbers.tolist(), images.argsort(stable=True).split(counts.tolist()), strict=True)
