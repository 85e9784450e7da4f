"""What BatchNorm remembers, read first; then its arithmetic, folded into the layers around it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, fx

from datafree import graph as g
from datafree.graph import BATCH_NORM, argument, batch_norms
from datafree.records import ChannelStats, Skipped, Stats


def fold_batchnorm_(teacher: fx.GraphModule) -> tuple[Stats, tuple[Skipped, ...]]:
    """Read the statistics of every BatchNorm, then fold it into a neighbour or keep it as an exact affine op.

    The output of a BatchNorm has mean beta and standard deviation |gamma| sqrt(var / (var + eps)) (the paper; the
    second factor is ours and matters where var is not far above eps). Folding, a = gamma / sqrt(var + eps):

        backward, into the only producer:   W <- a W,  b <- a (b - running_mean) + beta              (the paper)
        forward, into an unpadded consumer: W <- W a (its input channels),  b <- b + W (beta - a running_mean)

    Returns:
        Statistics by the node that now yields what the BatchNorm yielded, and the BatchNorms kept as affine ops.
    """
    stats: Stats = {}
    kept = []
    for node in batch_norms(teacher):
        scale, shift, out = _affine(teacher, node)
        name = str(g.operand(node, 3).target).rpartition(".")[0] or node.name
        source = g.operand(node)
        if _sole_user(source, node):
            _fold_backward(teacher, source, scale, shift)
            node.replace_all_uses_with(source)
            stats[source.name] = out
        elif (consumer := _forward_target(node)) is not None:
            mean, var = (g.tensor_of(teacher, g.operand(node, i)) for i in (3, 4))
            _fold_forward(teacher, consumer, scale, shift)
            node.replace_all_uses_with(source)
            stats[source.name] = ChannelStats(mean.clone(), var.sqrt(), torch.ones_like(mean))
        else:
            stats[_keep_affine(teacher, node, name, scale, shift)] = out
            kept.append(Skipped(name, f"BatchNorm kept as a per-channel affine op: {_reason(source)}"))
    g.tidy(teacher)
    bare = [n for n in teacher.graph.nodes if n.target is BATCH_NORM]
    kept += [Skipped(g.note(n).path or n.name, "BatchNorm without running statistics: left as it is") for n in bare]
    return stats, tuple(kept)


def _affine(teacher: fx.GraphModule, node: fx.Node) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"], ChannelStats]:
    """y = scale x + shift, and the statistics of y."""
    mean, var = (g.tensor_of(teacher, g.operand(node, i)).double() for i in (3, 4))
    gamma, beta = (argument(node, name) for name in ("weight", "bias"))
    gamma = torch.ones_like(mean) if gamma is None else g.tensor_of(teacher, gamma).double()
    beta = torch.zeros_like(mean) if beta is None else g.tensor_of(teacher, beta).double()
    scale = gamma / torch.sqrt(var + argument(node, "eps"))
    std = scale.abs() * var.sqrt()
    return scale.float(), (beta - scale * mean).float(), ChannelStats(beta.float(), std.float(), scale.float())


def _sole_user(source: fx.Node, node: fx.Node) -> bool:
    return list(source.users) == [node] and g.has_rows_in_dimension_1(source)


def _forward_target(node: fx.Node) -> fx.Node | None:
    """The consumer this BatchNorm can be folded into: the only one, and nothing is padded with zeros."""
    users = list(node.users)
    if len(users) != 1 or not g.note(users[0]).layer or g.operand(users[0]) is not node:
        return None
    consumer = users[0]
    if not g.has_rows_in_dimension_1(consumer) or g.meets_borders(consumer):
        return None
    return consumer if len(g.operand(node).users) == 1 else None


def _fold_backward(teacher: fx.GraphModule, source: fx.Node, scale: Tensor, shift: Tensor) -> None:
    name = g.layer_name(source)
    weight, bias = (g.get_tensor(teacher, f"{name}.{p}").double() for p in ("weight", "bias"))
    per_row = (-1, *[1] * (weight.dim() - 1))
    g.set_tensor(teacher, f"{name}.weight", (weight * scale.double().view(per_row)).float())
    g.set_tensor(teacher, f"{name}.bias", (bias * scale.double() + shift.double()).float())


def _fold_forward(teacher: fx.GraphModule, consumer: fx.Node, scale: Tensor, shift: Tensor) -> None:
    name = g.layer_name(consumer)
    weight, bias = (g.get_tensor(teacher, f"{name}.{p}").double() for p in ("weight", "bias"))
    layer = g.read_layer(consumer)
    rows = g.grouped(weight, layer.groups)  # (g, o, n)
    a, t = (v.double().view(layer.groups, 1, -1).repeat_interleave(layer.kernel_size, 2) for v in (scale, shift))
    g.set_tensor(teacher, f"{name}.weight", (rows * a).reshape(weight.shape).float())
    g.set_tensor(teacher, f"{name}.bias", (bias + (rows * t).sum(2).flatten()).float())


def _keep_affine(teacher: fx.GraphModule, node: fx.Node, name: str, scale: Tensor, shift: Tensor) -> str:
    """Put `x * scale + shift` in place of the BatchNorm; returns the name of the node that yields it."""
    rank = len(g.shape(node))
    view = (1, -1, *[1] * (rank - 2))
    total = g.insert_affine(teacher, node, name, scale.view(view), shift.view(view))
    node.replace_all_uses_with(total)
    return total.name


def _reason(source: fx.Node) -> str:
    if g.note(source).layer and len(source.users) > 1:
        return "the layer before it has other consumers"
    return "no convolution or linear layer is right before it"
