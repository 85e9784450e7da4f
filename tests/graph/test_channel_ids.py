"""Channel classes of nets made by hand, and of every net: scale a class and the function must stay."""

from __future__ import annotations

import functools
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from datafree import graph as g
from datafree.graph.capture import trace
from datafree.graph.channel_ids import channel_ids
from datafree.teacher.batchnorm import fold_batchnorm_
from nets import FEW, IMAGE, NETS, Concat, Residual, conv

FREE, HOMOGENEOUS = False, True


class Ports:
    """Classes by layer, (C,) each; `blocked` tells them apart."""

    def __init__(self, graph, homogeneous):
        spaces = channel_ids(graph, homogeneous=homogeneous)
        self.out = {p.layer: p.classes for p in spaces.producers}
        self.inp = {p.layer: p.classes for p in spaces.consumers}
        self.blocked = spaces.blocked

    def is_blocked(self, classes):
        """True or False where all are alike."""
        (answer,) = set(self.blocked[classes].tolist())
        return answer


def ports(model, homogeneous, shape=IMAGE):
    graph = trace(model.eval(), torch.zeros(shape))
    fold_batchnorm_(graph)
    return Ports(graph, homogeneous)


def named(**modules):
    return nn.Sequential(OrderedDict(modules))


def relu_between(*layers):
    return named(**{key: m for i, layer in enumerate(layers) for key, m in ((f"l{i}", layer), (f"r{i}", nn.ReLU()))})


both = pytest.mark.parametrize("homogeneous", [HOMOGENEOUS, FREE], ids=["homogeneous", "free"])


# Chains


@both
def test_a_chain_links_every_output_to_the_next_input(homogeneous):
    p = ports(named(a=conv(3, 4), r=nn.ReLU(), b=conv(4, 5), pool=nn.MaxPool2d(2), c=conv(5, 6)), homogeneous)
    assert torch.equal(p.out["a"], p.inp["b"]) and torch.equal(p.out["b"], p.inp["c"])
    assert len({*p.out["a"].tolist(), *p.out["b"].tolist()}) == 9, "every channel is a class of its own"
    assert not p.is_blocked(p.out["a"]) and not p.is_blocked(p.out["b"])


def test_inputs_and_outputs_of_the_network_are_blocked_where_scales_must_pass():
    model = named(a=conv(3, 4), r=nn.ReLU(), b=conv(4, 5))
    strict, free = ports(model, HOMOGENEOUS), ports(model, FREE)
    assert strict.is_blocked(strict.inp["a"]) and strict.is_blocked(strict.out["b"])
    assert not free.is_blocked(free.inp["a"]) and not free.is_blocked(free.out["b"])


def test_an_output_in_the_middle_is_blocked():
    graph, _ = folded("two outputs")
    p = Ports(graph, HOMOGENEOUS)
    assert p.is_blocked(p.out["stem.conv"]) and torch.equal(p.out["stem.conv"], p.inp["deep.conv"])
    assert not p.is_blocked(p.out["deep.conv"])


# Branches


@both
def test_a_residual_shares_one_class(homogeneous):
    body = Residual(conv(4, 6), nn.ReLU(), conv(6, 4))
    p = ports(named(stem=conv(3, 4), body=body, r=nn.ReLU(), last=conv(4, 5)), homogeneous)
    for classes in (p.inp["body.0"], p.out["body.2"], p.inp["last"]):
        assert torch.equal(classes, p.out["stem"])
    assert torch.equal(p.out["body.0"], p.inp["body.2"])
    assert len({*p.out["stem"].tolist()}) == 4 and not {*p.out["stem"].tolist()} & {*p.out["body.0"].tolist()}
    assert not p.is_blocked(p.out["stem"])


@both
def test_a_concatenation_gives_both(homogeneous):
    p = ports(
        named(stem=conv(3, 4), both=Concat([conv(4, 2), nn.Identity(), conv(4, 3)]), last=conv(9, 5)), homogeneous
    )
    assert torch.equal(p.inp["last"], torch.cat([p.out["both.0"], p.out["stem"], p.out["both.2"]]))
    assert torch.equal(p.inp["both.0"], p.out["stem"]) and not p.is_blocked(p.inp["last"])


def test_a_network_input_in_a_concatenation_blocks_only_itself():
    p = ports(named(both=Concat([conv(3, 2), nn.Identity()]), last=conv(5, 4)), HOMOGENEOUS)
    assert p.blocked[p.inp["last"]].tolist() == [False, False, True, True, True]


def test_a_sum_with_the_network_input_is_blocked():
    p = ports(named(both=Residual(conv(3, 3)), last=conv(3, 4)), HOMOGENEOUS)
    assert p.is_blocked(p.out["both.0"]) and p.is_blocked(p.inp["last"])


# Depthwise and grouped


@both
@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_ports(multiplier, homogeneous):
    depthwise = conv(4, 4 * multiplier, groups=4)
    p = ports(relu_between(conv(3, 4, 1), depthwise, conv(4 * multiplier, 5, 1)), homogeneous)
    assert (len(p.inp["l1"]), len(p.out["l1"])) == (4, 4 * multiplier)
    assert torch.equal(p.inp["l1"], p.out["l0"]) and torch.equal(p.out["l1"], p.inp["l2"])
    assert not {*p.inp["l1"].tolist()} & {*p.out["l1"].tolist()}, "in and out are scaled one by one"


@both
def test_grouped_ports_count_all_channels(homogeneous):
    p = ports(relu_between(conv(3, 8), conv(8, 12, groups=4), conv(12, 6, groups=2)), homogeneous)
    assert [len(p.inp[n]) for n in ("l0", "l1", "l2")] == [3, 8, 12] and torch.equal(p.out["l1"], p.inp["l2"])


# Moves


@both
def test_a_shuffle_permutes_classes(homogeneous):
    graph, _ = folded("channel shuffle and split")
    p = Ports(graph, homogeneous)
    stem, body = p.out["stem.conv"], p.out["body.1.conv"]
    assert torch.equal(p.inp["body.0.conv"], stem[4:])
    wanted = [c for pair in zip(stem[:4].tolist(), body.tolist(), strict=True) for c in pair]
    assert p.inp["last.conv"].tolist() == wanted


@both
def test_a_flatten_repeats_classes(homogeneous):
    model = named(a=conv(3, 4), r=nn.ReLU(), pool=nn.MaxPool2d(4), flat=nn.Flatten(), b=nn.Linear(4 * 16, 5))
    p = ports(model, homogeneous)
    assert torch.equal(p.inp["b"], p.out["a"].repeat_interleave(16)) and not p.is_blocked(p.inp["b"])


@both
def test_a_mean_keeps_classes(homogeneous):
    p = ports(named(a=conv(3, 4), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), b=nn.Linear(4, 5)), homogeneous)
    assert torch.equal(p.inp["b"], p.out["a"]) and not p.is_blocked(p.inp["b"])


@both
def test_four_channels_that_become_one_are_blocked(homogeneous):
    """PixelShuffle: a consumer's column is fed by four rows, so neither may be scaled."""
    p = ports(named(a=conv(3, 8), up=nn.PixelShuffle(2), b=conv(2, 4)), homogeneous)
    assert p.is_blocked(p.out["a"]) and "b" not in p.inp


# Operators a scale does not pass


class FunctionalRelu6(nn.Module):
    def forward(self, x):
        return nn.functional.relu6(x)


@pytest.mark.parametrize("act", [nn.ReLU6, nn.SiLU, nn.Hardswish, nn.GELU, nn.Sigmoid, FunctionalRelu6])
def test_bounded_and_curved_activations_block_scales_and_keep_channels(act):
    model = named(a=conv(3, 4), act=act(), b=conv(4, 5))
    strict, free = ports(model, HOMOGENEOUS), ports(model, FREE)
    assert strict.is_blocked(strict.out["a"]) and strict.is_blocked(strict.inp["b"])
    assert torch.equal(free.out["a"], free.inp["b"]) and not free.is_blocked(free.out["a"])


@pytest.mark.parametrize("act", [nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity])
def test_homogeneous_activations_let_scales_pass(act):
    p = ports(named(a=conv(3, 4), act=act(), b=conv(4, 5)), HOMOGENEOUS)
    assert torch.equal(p.out["a"], p.inp["b"]) and not p.is_blocked(p.out["a"])


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.last = conv(3, 8), conv(8, 6, 1)
        self.reduce, self.expand = conv(8, 2, 1), conv(2, 8, 1)

    def forward(self, x):
        x = self.stem(x).relu()
        gate = self.expand(self.reduce(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.last(x * gate)


def test_a_gate_lets_the_scale_of_the_gated_pass():
    p = ports(Gated(), HOMOGENEOUS)
    for classes in (p.inp["reduce"], p.inp["last"]):
        assert torch.equal(classes, p.out["stem"])
    assert not p.is_blocked(p.out["stem"]) and p.is_blocked(p.out["expand"])
    assert torch.equal(p.out["reduce"], p.inp["expand"]) and not p.is_blocked(p.out["reduce"])


def test_a_gate_is_of_the_same_channels_where_nothing_is_assumed():
    p = ports(Gated(), FREE)
    assert torch.equal(p.out["expand"], p.out["stem"]) and torch.equal(p.inp["last"], p.out["stem"])
    assert not p.is_blocked(p.out["expand"])


def test_two_unknown_factors_are_blocked():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = conv(3, 4), conv(3, 4), conv(4, 5)

        def forward(self, x):
            return self.c(self.a(x) * self.b(x))

    p = ports(Product(), HOMOGENEOUS)
    assert all(p.is_blocked(classes) for classes in (p.out["a"], p.out["b"], p.inp["c"]))


def test_padding_with_a_value_is_blocked_and_zeros_are_not():
    for value in (0.0, 0.5):
        p = ports(named(a=conv(3, 4), r=nn.ReLU(), pad=nn.ConstantPad2d(1, value), b=conv(4, 5)), HOMOGENEOUS)
        assert p.is_blocked(p.out["a"]) == p.is_blocked(p.inp["b"]) == bool(value)


# All nets


# Those whose hazard lies in what feeds what, or in what a scale passes through.
HAZARDS = (
    "residual", "residual with projection", "depthwise inverted residual", "depthwise with multiplier", "grouped",
    "concat", "squeeze and excitation", "channel shuffle and split", "several consumers", "two outputs",
    "shared module", "shared conv, two batchnorms", "pre-activation", "batchnorm after activation", "dead channels",
    "linear after flatten", "in place", "pools", "activations", "asymmetric zero padding", "reflection padding",
    "transposed conv",
)  # fmt: skip
IDLE = ("depthwise inverted residual", "squeeze and excitation", "in place")  # bounded or curved between all layers


@functools.cache
def folded(name):
    model, inputs = NETS[name]()
    graph = trace(model, inputs)
    fold_batchnorm_(graph)
    return graph, inputs


def outputs(module, inputs):
    with torch.no_grad():
        return torch.cat([v.flatten().double() for v in tree_leaves(module(*inputs))])


@pytest.mark.parametrize("name", [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in HAZARDS])
def test_any_scale_of_any_class_that_is_not_blocked_cancels(name):
    """Rows and biases times s, columns through s: the promise equalization and pruning are built on."""
    graph, inputs = folded(name)
    wanted = outputs(graph, inputs)
    scaled = g.duplicate(graph)
    p = Ports(scaled, HOMOGENEOUS)
    s = 2 ** torch.randint(-3, 4, p.blocked.shape, generator=torch.Generator().manual_seed(0)).float()
    s[p.blocked] = 1
    for layer_name, layer in g.layers(scaled).items():
        weight, bias = g.weight(scaled, layer), g.bias(scaled, layer)
        if layer_name in p.out:
            rows = s[p.out[layer_name]]
            weight, bias = weight * rows.view(-1, *[1] * (weight.dim() - 1)), bias * rows
        if layer_name in p.inp:
            columns = s[p.inp[layer_name]].view(layer.groups, 1, -1, 1)
            grouped = weight.reshape(layer.groups, weight.shape[0] // layer.groups, weight.shape[1], -1)
            weight = (grouped / columns).view(weight.shape)
        g.set_tensor(scaled, f"{layer_name}.weight", weight)
        g.set_tensor(scaled, f"{layer_name}.bias", bias)
    found = outputs(scaled, inputs)
    assert float((found - wanted).abs().max() / (wanted.max() - wanted.min())) < 1e-5
    used = torch.zeros_like(p.blocked)
    for classes in (*p.out.values(), *p.inp.values()):
        used[classes] = True
    assert bool((used & ~p.blocked).any()) == (name not in IDLE)
