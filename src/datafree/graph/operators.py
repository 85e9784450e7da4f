"""One row an operator: what it does to channels, values and integers. All who must know ask this table.

An operator without a row is taken to mix channels and to compute anything: `UNKNOWN`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Literal

import torch
from torch import fx

from datafree.graph.annotations import operand, shape

aten = torch.ops.aten
CONV, LINEAR, BATCH_NORM = aten.conv2d.default, aten.linear.default, aten.batch_norm.default


@dataclass(frozen=True)
class Operator:
    """What is known of an operator.

    channels: "keeps" = every output channel is made of the same input channel; "moves" = values change places, so it
        can be executed on channel numbers; "joins" = tensors behind each other; "unites" = operands are added or
        compared, channel by channel; "gates" = they are multiplied; "pads"; "mixes" = anything else.
    homogeneous: f(s x) = s f(x) for s > 0 per channel, where all operands but one are constants.
    elementwise: an output pixel depends on that input pixel alone.
    same_values: values are only moved, picked or left out, or zeros come in, so one grid serves both. Not clipping,
        whose range is smaller.
    pools: reads a tensor that is quantized at 8 bits, as sums do.
    over: "space" = works on height and width alone, and a channel stays what it is; "dims" = on those it is given.
    reduces: takes an argument `dim`, of dimensions that go.
    clips: the ends it clips to, where clipping is all it does; None in another use of it.
    averages: how many values it averages; 0 where that differs from place to place.
    removal: how its arguments follow when channels are removed: "sizes", "splits", "slice", "pads", "as it is"; "" =
        channels before it cannot be removed.
    identity: does nothing in eval mode.
    within: ends of its values whatever comes in, which runtimes give them a known grid for.
    """

    channels: Literal["keeps", "moves", "joins", "unites", "gates", "pads", "mixes"] = "mixes"
    homogeneous: bool = False
    elementwise: bool = False
    same_values: bool = False
    pools: bool = False
    over: Literal["", "space", "dims"] = ""
    reduces: bool = False
    clips: Callable[[fx.Node], tuple[float, float] | None] | None = None
    averages: Callable[[fx.Node], int] | None = None
    removal: Literal["", "sizes", "splits", "slice", "pads", "as it is"] = "as it is"
    identity: bool = False
    within: tuple[float, float] | None = None


UNKNOWN = Operator()


def operator_of(node: fx.Node) -> Operator:
    """The row of the operator that a node calls; one of several results of an unknown operator is as unknown."""
    if node.target is operator.getitem and operand(node).target not in OPERATORS:
        return UNKNOWN
    return OPERATORS.get(node.target, UNKNOWN)


def argument(node: fx.Node, name: str) -> Any:
    """A call's argument by the name it has in the operator's schema; its default where it was left out."""
    assert isinstance(node.target, torch._ops.OpOverload), f"{node.name} calls an operator with a schema"
    for position, known in enumerate(node.target._schema.arguments):
        if known.name == name:
            return node.args[position] if position < len(node.args) else node.kwargs.get(name, known.default_value)
    raise AssertionError(f"{node.target} has no argument {name}")


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Write a call's argument anew, by the name it has in the operator's schema; it was given by position."""
    assert isinstance(node.target, torch._ops.OpOverload), f"{node.name} calls an operator with a schema"
    names = [known.name for known in node.target._schema.arguments]
    node.update_arg(names.index(name), value)


def summands(node: fx.Node) -> tuple[fx.Node, ...]:
    """The two tensors that a node adds; none where it does anything else."""
    if node.target is not aten.add.Tensor or node.kwargs or not all(isinstance(x, fx.Node) for x in node.args):
        return ()
    return tuple(node.all_input_nodes) if len(node.all_input_nodes) == 2 else ()


def operator_by_name(name: str) -> Any:
    """`torch.ops.aten.relu.default` of "aten.relu.default"; operators themselves are not picklable."""
    return reduce(getattr, name.split("."), torch.ops)


# ---- what depends on a call's arguments


def _fixed(low: float, high: float) -> Callable[[fx.Node], tuple[float, float]]:
    return lambda node: (low, high)


def _given(low: str | None, high: str | None) -> Callable[[fx.Node], tuple[float, float] | None]:
    """Ends that are arguments of these names; None = open."""

    def end(node: fx.Node, name: str | None, opening: float) -> float | None:
        value = argument(node, name) if name else None
        return opening if value is None else None if isinstance(value, fx.Node) else float(value)

    def ends(node: fx.Node) -> tuple[float, float] | None:
        bottom, top = end(node, low, -math.inf), end(node, high, math.inf)
        return None if bottom is None or top is None else (bottom, top)

    return ends


def _mean_count(node: fx.Node) -> int:
    sides = shape(operand(node))
    dims = [dim % len(sides) for dim in argument(node, "dim") or range(len(sides))]
    return 0 if 0 in dims else math.prod(sides[dim] for dim in dims)


def _adaptive_count(node: fx.Node) -> int:
    given = shape(operand(node))[2:]
    sides = [divmod(n, out) for n, out in zip(given, argument(node, "output_size"), strict=True)]
    return 0 if any(rest for _, rest in sides) else math.prod(side for side, _ in sides)


def _window(node: fx.Node) -> int:
    """Padding may be left out of the count."""
    plain = not argument(node, "ceil_mode") and argument(node, "count_include_pad")
    return math.prod(argument(node, "kernel_size")) if plain else 0


def _pool_count(node: fx.Node) -> int:
    return 0 if argument(node, "divisor_override") else _window(node)


# ---- the table

POINTWISE = Operator("keeps", elementwise=True)
HOMOGENEOUS_POINTWISE = replace(POINTWISE, homogeneous=True)
POOL = Operator("keeps", homogeneous=True, pools=True, over="space")
MOVE = Operator("moves", same_values=True)
FIXED_MOVE = replace(MOVE, removal="")
SUM, PRODUCT = Operator("unites", elementwise=True), Operator("gates", homogeneous=True, elementwise=True)
NORM = Operator("keeps", removal="")
IDENTITY = Operator("keeps", identity=True)

OPERATORS: dict[object, Operator] = {
    # activations
    aten.relu.default: replace(HOMOGENEOUS_POINTWISE, clips=_fixed(0.0, math.inf)),
    aten.relu6.default: replace(POINTWISE, clips=_fixed(0.0, 6.0)),
    aten.hardtanh.default: replace(POINTWISE, clips=_given("min_val", "max_val")),
    aten.clamp.default: replace(POINTWISE, clips=_given("min", "max")),
    aten.leaky_relu.default: HOMOGENEOUS_POINTWISE,
    aten.prelu.default: Operator("keeps", homogeneous=True),
    aten._prelu_kernel.default: Operator("keeps", homogeneous=True),
    aten.silu.default: POINTWISE,
    aten.hardswish.default: POINTWISE,
    aten.hardsigmoid.default: POINTWISE,
    aten.sigmoid.default: replace(POINTWISE, within=(0.0, 1.0)),
    aten.gelu.default: POINTWISE,
    aten.tanh.default: replace(POINTWISE, within=(-1.0, 1.0)),
    aten.elu.default: POINTWISE,
    aten.selu.default: POINTWISE,
    aten.celu.default: POINTWISE,
    aten.mish.default: POINTWISE,
    aten.softplus.default: POINTWISE,
    # arithmetic
    aten.abs.default: HOMOGENEOUS_POINTWISE,
    aten.neg.default: HOMOGENEOUS_POINTWISE,
    aten.exp.default: POINTWISE,
    aten.sqrt.default: POINTWISE,
    aten.log.default: POINTWISE,
    aten.rsqrt.default: POINTWISE,
    aten.square.default: POINTWISE,
    aten.reciprocal.default: POINTWISE,
    aten.clamp_min.default: replace(POINTWISE, clips=_given("min", None)),
    aten.clamp_max.default: replace(POINTWISE, clips=_given(None, "max")),
    aten.pow.Tensor_Scalar: POINTWISE,
    aten.add.Scalar: POINTWISE,
    aten.sub.Scalar: POINTWISE,
    aten.rsub.Scalar: POINTWISE,
    aten.mul.Scalar: HOMOGENEOUS_POINTWISE,
    aten.div.Scalar: HOMOGENEOUS_POINTWISE,
    aten.div.Tensor: Operator("keeps", homogeneous=True),
    aten.to.dtype: Operator("keeps"),
    aten.add.Tensor: SUM,
    aten.sub.Tensor: SUM,
    aten.maximum.default: SUM,
    aten.minimum.default: SUM,
    aten.mul.Tensor: PRODUCT,
    # pooling, reductions, resampling
    aten.max_pool1d.default: replace(POOL, same_values=True),
    aten.max_pool2d.default: replace(POOL, same_values=True),
    aten.adaptive_max_pool1d.default: replace(POOL, same_values=True),
    aten.adaptive_max_pool2d.default: replace(POOL, same_values=True),
    aten.avg_pool1d.default: replace(POOL, averages=_window),
    aten.avg_pool2d.default: replace(POOL, averages=_pool_count),
    aten.adaptive_avg_pool1d.default: replace(POOL, averages=_adaptive_count),
    aten.adaptive_avg_pool2d.default: replace(POOL, averages=_adaptive_count),
    aten.mean.dim: replace(POOL, over="dims", reduces=True, averages=_mean_count),
    aten.amax.default: Operator("keeps", homogeneous=True, over="dims", reduces=True),
    aten.sum.dim_IntList: Operator("keeps", homogeneous=True, reduces=True),
    aten.upsample_nearest1d.vec: Operator("keeps", homogeneous=True, same_values=True, over="space"),
    aten.upsample_linear1d.vec: Operator("keeps", homogeneous=True, over="space"),
    aten.upsample_nearest2d.vec: Operator("keeps", homogeneous=True, same_values=True, over="space"),
    aten.upsample_bilinear2d.vec: Operator("keeps", homogeneous=True, over="space"),
    # normalisations that were not folded
    aten.group_norm.default: NORM,
    aten.instance_norm.default: NORM,
    aten.batch_norm.default: NORM,
    # moves
    aten.contiguous.default: replace(HOMOGENEOUS_POINTWISE, same_values=True),
    aten.clone.default: replace(HOMOGENEOUS_POINTWISE, same_values=True),
    aten.view.default: replace(MOVE, removal="sizes"),
    aten.reshape.default: replace(MOVE, removal="sizes"),
    aten._unsafe_view.default: replace(MOVE, removal="sizes"),
    aten.expand.default: replace(MOVE, removal="sizes"),
    aten.expand_as.default: FIXED_MOVE,
    aten.flatten.using_ints: MOVE,
    aten.unflatten.int: FIXED_MOVE,
    aten.permute.default: MOVE,
    aten.transpose.int: MOVE,
    aten.squeeze.dim: MOVE,
    aten.squeeze.dims: MOVE,
    aten.unsqueeze.default: MOVE,
    aten.slice.Tensor: replace(MOVE, over="dims", removal="slice"),
    aten.narrow.default: FIXED_MOVE,
    aten.select.int: FIXED_MOVE,
    aten.split.Tensor: replace(MOVE, removal="splits"),
    aten.split_with_sizes.default: replace(MOVE, removal="splits"),
    aten.chunk.default: replace(MOVE, removal="splits"),
    aten.unbind.int: FIXED_MOVE,
    operator.getitem: MOVE,
    aten.roll.default: FIXED_MOVE,
    aten.flip.default: FIXED_MOVE,
    aten.pixel_shuffle.default: FIXED_MOVE,
    aten.channel_shuffle.default: FIXED_MOVE,
    aten.cat.default: Operator("joins"),
    aten.stack.default: Operator("moves"),
    aten.constant_pad_nd.default: Operator("pads", same_values=True, removal="pads"),
    aten.pad.default: Operator("pads"),
    # what mixes channels
    CONV: UNKNOWN,
    LINEAR: UNKNOWN,
    aten.conv1d.default: UNKNOWN,
    aten.conv_transpose1d.default: UNKNOWN,
    aten.conv_transpose2d.input: UNKNOWN,
    aten.matmul.default: UNKNOWN,
    aten.bmm.default: UNKNOWN,
    aten.softmax.int: replace(UNKNOWN, within=(0.0, 1.0)),
    aten.layer_norm.default: UNKNOWN,
    aten.rms_norm.default: UNKNOWN,
    aten.conv3d.default: UNKNOWN,
    aten.einsum.default: UNKNOWN,
    aten.scaled_dot_product_attention.default: UNKNOWN,
    # not looked into: taken to mix them
    aten.max.other: UNKNOWN,
    aten.min.other: UNKNOWN,
    aten.addcmul.default: UNKNOWN,
    aten.var.correction: UNKNOWN,
    aten.var.dim: UNKNOWN,
    aten.linalg_vector_norm.default: UNKNOWN,
    aten.norm.ScalarOpt_dim: UNKNOWN,
    # nothing at all, in eval mode
    aten.dropout.default: IDENTITY,
    aten.feature_dropout.default: IDENTITY,
    aten.alpha_dropout.default: IDENTITY,
    aten.detach.default: IDENTITY,
    aten.alias.default: IDENTITY,
    aten.lift_fresh_copy.default: IDENTITY,
}
