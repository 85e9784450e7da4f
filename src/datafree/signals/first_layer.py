"""The scale of the input of a network without BatchNorm: its own normalisation, or the kernel of its first layer."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, fx

from datafree import graph as g
from datafree.records import NATURAL_MEAN, NATURAL_STD, InputRange
from datafree.signals.source import batch_statistics

STRETCHED = 0.1  # a normalisation multiplies pixels in 0..255 by less than this, pixels in 0..1 by more
WIDE = 2.5  # from the darkest to the brightest pixel; wider, and above zero alone, the mean was subtracted before
SMALL_KERNEL = 0.08  # deviation of the first layer's output on unit-deviation images: 0.017 of a network that reads
# pixels in 0..255, 0.37 and more of five that read smaller ones


def range_without_batchnorm(teacher: fx.GraphModule, index: int, unit: Float[Tensor, "n c ..."]) -> InputRange | None:
    """Guess whether the network reads pixels in 0..1, in 0..255, or numbers near one (ours); None = nothing tells.

    A normalisation a x + b inside the network, in front of its first layer, tells by the size of a. Else the first
    layer does: it is made for outputs near one, so a kernel that makes little of unit-deviation images reads pixels in
    0..255. Their mean was subtracted before unless the layer's biases take it away.
    """
    if unit.dim() != 4:
        return None
    layer = _first_layer(g.placeholders(teacher)[index])
    if layer is None:
        return None
    return _from_normalization(teacher, index, layer, unit.shape[1:]) or _from_kernel(teacher, layer, unit)


def _first_layer(node: fx.Node) -> fx.Node | None:
    """The layer reached from an input through one operation after another."""
    while not g.note(node).layer:
        users = [u for u in node.users if g.note(u).size is None]
        if len(users) != 1 or users[0].op == "output":
            return None
        (node,) = users
    return node if g.spans_space(node) else None


def _from_normalization(teacher: fx.GraphModule, index: int, layer: fx.Node, shape: torch.Size) -> InputRange | None:
    """What lies between input and first layer, read off images of 0, 1 and 2; None where that is not a x + b."""
    zero, one, two = (_before(teacher, index, layer, shape, value) for value in (0.0, 1.0, 2.0))
    gain = one - zero
    is_affine = torch.allclose(two - one, gain, rtol=1e-3, atol=1e-5) and len(zero) == shape[0]
    if not is_affine or (torch.equal(zero, torch.zeros_like(zero)) and torch.equal(one, torch.ones_like(one))):
        return None
    top = 255.0 if float(gain.abs().mean()) < STRETCHED else 1.0
    width = float(gain.abs().mean()) * top
    is_centred = width > WIDE and float(zero.abs().mean()) < 0.1 * width
    return _pixels(top, shape[0], is_centred, "the normalisation inside the network")


def _before(teacher: fx.GraphModule, index: int, layer: fx.Node, shape: torch.Size, value: float) -> Tensor:
    """What enters the first layer, (C,), in the middle of a grey image."""
    images = tuple(torch.zeros(1, *g.shape(node)[1:]) for node in g.placeholders(teacher))
    grey = torch.full((1, *shape), value)
    for node, values in g.walk(teacher, (*images[:index], grey, *images[index + 1 :])):
        if node is layer:
            x = values[g.operand(layer)]
            return x[0, :, x.shape[2] // 2, x.shape[3] // 2]
    raise AssertionError("the layer is in the network")


def _from_kernel(teacher: fx.GraphModule, layer: fx.Node, unit: Float[Tensor, "n c h w"]) -> InputRange | None:
    weight, bias = (g.get_tensor(teacher, f"{g.layer_name(layer)}.{p}") for p in ("weight", "bias"))
    _, std = batch_statistics(g.run_layer(layer, unit, weight, torch.zeros_like(bias)))
    alive = std > 1e-3 * std.max()
    if not bool(alive.any()) or float(std[alive].median()) > SMALL_KERNEL:
        return None
    gain, offset = (weight.flatten(1).sum(1)[alive] / std[alive]).double(), (bias[alive] / std[alive]).double()
    mean = -float(gain @ offset / gain.square().sum().clamp(min=1e-12))  # of the input, that the biases take away
    is_centred = mean < 0.5 * 255 * sum(NATURAL_MEAN) / len(NATURAL_MEAN)
    return _pixels(255.0, unit.shape[1], is_centred, "the first layer's kernel, which is small; assumed")


def _pixels(top: float, channels: int, is_centred: bool, source: str) -> InputRange:
    """Natural images whose pixels reach from 0 to `top`."""
    means, stds = NATURAL_MEAN, NATURAL_STD
    if channels != len(means):
        means, stds = ((sum(values) / len(values),) * channels for values in (means, stds))
    mean = tuple(0.0 if is_centred else top * m for m in means)
    where = f"pixels in 0..{top:g}" + (", their mean subtracted" if is_centred else "")
    return InputRange(mean, tuple(top * s for s in stds), f"{where}: {source}")
