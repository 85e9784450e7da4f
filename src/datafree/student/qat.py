"""A student to train on, as long as one likes: float weights, learnable scales, and back to integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, fx, nn

from datafree import graph as g
from datafree.records import LayerResult, QParams
from datafree.student.assemble import DEQUANTIZE, DEQUANTIZE_ROWS, QUANTIZE, stored_scale
from datafree.student.tie_free_scales import scale_changes

T = TypeVar("T")
GRIDS = "activation_grids"
METHOD = "trained"


class TrainableStudent(nn.Module, Generic[T]):
    """A module with the student's answers at the start, whose weights, biases and scales are parameters.

    Rounding is passed straight through, and a scale s has the gradient of the rounded value,

        d s round(x / s) / d s = round(x / s) - x / s  within the grid, its end without  (LSQ, arXiv 1902.08153)

    divided by sqrt(N qmax) as there. A scale is s exp(p) with p learned, 0 at the start: one step is a share of it.
    Zeros of pruned layers stay zeros. BatchNorm is folded, so there is no mode to train in: `train()` changes nothing.

    Args:
        student: not touched.
        layers: as they were solved.
        learn_activations: whether scales between layers are learned, too; runtimes that prescribe grids forbid it.
        finish: what to make of the frozen student and its layers.
    """

    def __init__(
        self,
        student: fx.GraphModule,
        layers: Sequence[LayerResult],
        *,
        learn_activations: bool,
        finish: Callable[[fx.GraphModule, tuple[LayerResult, ...]], T],
    ) -> None:
        super().__init__()
        self._start, self._layers, self._finish = (student,), tuple(layers), finish  # in a tuple: no submodule
        self.net = _with_parameters(student, {r.name: r for r in layers}, learn_activations=learn_activations)

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        """As the student, in float32."""
        return self.net(*inputs, **named)

    def freeze(self) -> T:
        """What it is now, in integers; this module stays as it is, and may be trained on."""
        with torch.no_grad():
            return self._finish(*_frozen(self._start[0], self.net, self._layers))


class Grid(nn.Module):
    """Rounding to integers times a scale, which is learned; one scale, or one for each entry of dimension 0."""

    scale: Tensor
    stretch: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, scale: Tensor, zero_point: int, low: Tensor, high: Tensor, *, learned: int) -> None:
        """Args: learned: how many values are learned; 0 = none."""
        super().__init__()
        self.zero_point = zero_point
        for name, value in (("scale", scale), ("low", low), ("high", high)):
            self.register_buffer(name, value)
        stretch = torch.zeros(max(1, learned))
        self.register_parameter("stretch", nn.Parameter(stretch, requires_grad=learned > 0))

    def now(self) -> Tensor:
        """The scale."""
        return self.scale * self.stretch.exp()

    def forward(self, x: Tensor) -> Tensor:
        share = (x.numel() / len(self.stretch) * float(self.high.max())) ** -0.5
        stretch = self.stretch * share + (self.stretch * (1 - share)).detach()
        scale = _over_rows(self.scale * stretch.exp(), x)
        q = x * (1 / scale)
        q = q + (q.round() - q).detach() + self.zero_point
        return (q.clamp(_over_rows(self.low, x), _over_rows(self.high, x)) - self.zero_point) * scale

    def integers(self, x: Tensor) -> Tensor:
        q = (x / _over_rows(self.now(), x)).round() + self.zero_point
        return q.clamp(_over_rows(self.low, x), _over_rows(self.high, x))


class Weight(nn.Module):
    """A layer's weights, real, (C_out, C_in/groups, *kernel): rounded where they are integers in the student."""

    kept: Tensor

    def __init__(self, value: Tensor, grid: Grid | None, *, pruned: bool) -> None:
        super().__init__()
        self.value, self.grid = nn.Parameter(value.clone()), grid
        self.register_buffer("kept", value != 0 if pruned else torch.ones(()))

    def now(self) -> Tensor:
        return self.value * self.kept

    def forward(self) -> Tensor:
        return self.now() if self.grid is None else self.grid(self.now())


def _over_rows(values: Tensor, x: Tensor) -> Tensor:
    return values if values.numel() == 1 else values.view(-1, *[1] * (x.dim() - 1))


# ---- there


def _with_parameters(
    student: fx.GraphModule, results: dict[str, LayerResult], *, learn_activations: bool
) -> fx.GraphModule:
    net = g.duplicate(student)
    nodes, old = g.nodes_by_name(net), [name for name, _ in net.named_buffers()]
    for name, layer in g.layers(net).items():
        node = nodes[layer.node]
        source, bias = g.weight_node(node), g.operand(node, 2)
        net.add_submodule(f"{name}.trained", _weight(net, source, results.get(name)))
        net.get_submodule(name).register_parameter("trained_bias", nn.Parameter(_value(net, bias).clone()))
        with net.graph.inserting_before(source):
            source.replace_all_uses_with(net.graph.call_module(f"{name}.trained"))
        with net.graph.inserting_before(bias):
            bias.replace_all_uses_with(net.graph.get_attr(f"{name}.trained_bias"))
    _learn_grids(net, learned=int(learn_activations))
    net.graph.eliminate_dead_code()
    read = {str(n.target) for n in net.graph.nodes if n.op == "get_attr"}
    for path in (path for path in old if path not in read):
        parent, _, name = path.rpartition(".")
        delattr(net.get_submodule(parent), name)
    net.recompile()
    return net


def _weight(net: fx.GraphModule, source: fx.Node, result: LayerResult | None) -> Weight:
    value, pruned = _value(net, source), result is not None and result.sparsity > 0
    qparams = result and result.weight_qparams
    if qparams is None:
        return Weight(value, None, pruned=pruned)
    low, high = ((end - qparams.zero_point).float() for end in (qparams.qmin, qparams.qmax))
    grid = Grid(stored_scale(net, source).clone(), 0, low, high, learned=len(qparams.scale))
    return Weight(value, grid, pruned=pruned)


def _value(net: fx.GraphModule, node: fx.Node) -> Tensor:
    """What a layer reads, a float tensor or integers times their scale."""
    if node.op == "get_attr":
        return g.tensor_of(net, node).float()
    stored = g.tensor_of(net, g.operand(node)).float()
    return stored * _over_rows(stored_scale(net, node), stored)


def _learn_grids(net: fx.GraphModule, *, learned: int) -> None:
    """Grids in place of pairs of quantize and dequantize; equal ones are one, as where values are only moved."""
    known: dict[tuple[Any, ...], str] = {}
    for node in [n for n in net.graph.nodes if _is_pair(n)]:
        scale, zero_point, low, high, *_ = key = tuple(node.args[1:])
        if key not in known:
            known[key] = f"{GRIDS}.{len(known)}"
            ends = (torch.tensor([float(end)]) for end in (low, high))
            net.add_submodule(known[key], Grid(torch.tensor([scale]), zero_point, *ends, learned=learned))
        with net.graph.inserting_before(node):
            rounded = net.graph.call_module(known[key], (g.operand(g.operand(node)),))
        node.replace_all_uses_with(rounded)


def _is_pair(node: fx.Node) -> bool:
    """Whether a node dequantizes what was quantized just before."""
    return node.target is DEQUANTIZE and g.operand(node).target is QUANTIZE


# ---- and back


def _frozen(
    start: fx.GraphModule, net: fx.GraphModule, layers: tuple[LayerResult, ...]
) -> tuple[fx.GraphModule, tuple[LayerResult, ...]]:
    """The student as it is now, and its layers."""
    student = g.duplicate(start)
    keys = dict.fromkeys(tuple(n.args[1:]) for n in start.graph.nodes if _is_pair(n))
    scales = {key: float(_grid(net, number).now()) for number, key in enumerate(keys)}
    for node in student.graph.nodes:
        if node.target is QUANTIZE or _is_pair(node):
            key = tuple(node.args[1:])
            node.args = (node.args[0], scales[key], *node.args[2:])
    weights = {name: _trained(net, name) for name in g.layers(student)}
    for name, weight in weights.items():
        if weight.grid is not None:
            _set_scale(student, _nodes(student, name)[0], weight.grid.now().clone())
    changes = scale_changes(student, start)
    done = [_put(student, r, weights[r.name], _bias(net, r.name), changes.get(r.name)) for r in layers]
    for name in weights.keys() - {r.name for r in layers}:
        g.set_tensor(student, f"{name}.weight", weights[name].now().clone())
        g.set_tensor(student, f"{name}.bias", _bias(net, name))
    g.tidy(student)
    return student, tuple(done)


def _put(
    student: fx.GraphModule, result: LayerResult, weight: Weight, bias: Tensor, change: Tensor | None
) -> LayerResult:
    """Write one layer into the student; the layer as it is then."""
    name, grid, old = result.name, weight.grid, result.weight_qparams
    source, offset = _nodes(student, name)
    if grid is None or old is None:
        g.set_tensor(student, f"{name}.weight", weight.now().clone() + 0.0)
        g.set_tensor(student, f"{name}.bias", bias)
        return replace(result, weight=weight.now().flatten(1), bias=bias, method=METHOD)
    gain = grid.scale / old.scale  # the vector behind the layer, which its stored scales hold
    integers, scale = grid.integers(weight.now()), grid.now()
    if change is not None and change.numel() == len(old.scale) == scale.numel():
        scale = scale * change
    g.set_tensor(student, str(g.operand(source).target), integers.to(torch.int8))
    _set_scale(student, source, scale.clone())
    _set_bias(student, offset, bias, scale, g.operand(g.node_of(student, g.layers(student)[name].node)))
    per_row = old.zero_point if old.zero_point.numel() == 1 else old.zero_point[:, None]
    rows = (integers.flatten(1).to(torch.int16) + per_row).to(result.weight.dtype)
    qparams = QParams((scale / gain)[: len(old.scale)].clone(), old.zero_point, old.qmin, old.qmax)
    return replace(result, weight=rows, weight_qparams=qparams, bias=bias / gain, method=METHOD)


def _set_bias(student: fx.GraphModule, node: fx.Node, bias: Tensor, scale: Tensor, read: fx.Node) -> None:
    """In units of input scale * weight scale, where it is an integer."""
    if node.op == "get_attr":
        g.set_tensor(student, str(node.target), bias)
        return
    input_scale: Any = read.args[1]
    step = (scale.double() * input_scale).float().expand(len(bias)).contiguous()
    g.set_tensor(student, str(g.operand(node).target), (bias / step).round().to(torch.int32))
    _set_scale(student, node, step)


def _set_scale(student: fx.GraphModule, node: fx.Node, scale: Tensor) -> None:
    """Of a dequantize node."""
    if node.target is DEQUANTIZE_ROWS:
        g.set_tensor(student, str(g.operand(node, 1).target), scale)
    else:
        node.args = (node.args[0], float(scale[0]), *node.args[2:])


def _nodes(student: fx.GraphModule, name: str) -> tuple[fx.Node, fx.Node]:
    """What yields a layer's weight and its bias."""
    node = g.node_of(student, g.layers(student)[name].node)
    return g.weight_node(node), g.operand(node, 2)


def _grid(net: fx.GraphModule, number: int) -> Grid:
    found = net.get_submodule(f"{GRIDS}.{number}")
    assert isinstance(found, Grid), "put there above"
    return found


def _trained(net: fx.GraphModule, name: str) -> Weight:
    found = net.get_submodule(f"{name}.trained")
    assert isinstance(found, Weight), "put there above"
    return found


def _bias(net: fx.GraphModule, name: str) -> Tensor:
    return net.get_parameter(f"{name}.trained_bias").detach().clone()
