"""Removing channels is zeroing them where they are read: on every tiny net, on hazards of its own, on real CNNs."""

import functools
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves

from datafree import graph as g
from datafree import load_model
from datafree.graph.capture import trace
from datafree.graph.channel_groups import ChannelsError, Group, channel_groups, described, remove_, unremovable
from datafree.teacher.batchnorm import fold_batchnorm_
from datafree.teacher.equalize import equalize_
from nets import IMAGE, NETS, Residual, block, calibrate_batchnorm_, conv, head, randomise_batchnorm_

HAZARDS = (
    "residual", "depthwise inverted residual", "grouped", "concat", "squeeze and excitation",
    "channel shuffle and split", "shared conv, two batchnorms", "pre-activation",
    "batchnorm after pooling and concat", "linear after flatten", "asymmetric zero padding",
)  # fmt: skip
UNCAPTURABLE = "in place through a view"
TINY = [
    name if name in HAZARDS else pytest.param(name, marks=pytest.mark.slow) for name in NETS if name != UNCAPTURABLE
]
CNNS = [
    "timm:resnet18", "timm:mobilenetv2_100", "timm:regnety_002", "timm:densenet121", "timm:efficientnet_b0",
    "torchvision:vgg11_bn",
]  # fmt: skip


def outputs(module, inputs):
    with torch.no_grad():
        return [value.double() for value in tree_leaves(module(*inputs))]


def fold(model, inputs):
    graph = trace(model, inputs)
    stats, _ = fold_batchnorm_(graph)
    return graph, stats


def folded(model):
    torch.manual_seed(0)
    randomise_batchnorm_(model.eval(), torch.Generator().manual_seed(0))
    inputs = (torch.randn(IMAGE),)
    return fold(model, inputs)[0], inputs


@functools.cache
def tiny(name):
    model, inputs = NETS[name]()
    return *fold(model, inputs), inputs


def zero_consumers_(graph, groups):
    """Zero the weights that read the groups' channels: one by one, from the definition of a grouped convolution."""
    layers = g.layers(graph)
    weights = {name: g.weight(graph, layer).clone() for name, layer in layers.items()}
    for group in groups:
        for name, channels in group.consumers:
            weight = weights[name]
            width, rows = weight.shape[1], weight.shape[0] // layers[name].groups
            for c in channels:
                weight[c // width * rows : (c // width + 1) * rows, c % width] = 0
    for name, weight in weights.items():
        g.set_tensor(graph, f"{name}.weight", weight)


def some(groups, share, seed=0):
    """A random share of the groups, never the first of its set of layers."""
    first = {described([group])[0]: group for group in reversed(groups)}
    rest = [group for group in groups if group not in first.values()]
    return random.Random(seed).sample(rest, min(len(rest), round(share * len(groups))))


def check_removal(graph, inputs, groups):
    zeroed, student = g.duplicate(graph), g.duplicate(graph)
    zero_consumers_(zeroed, groups)
    remove_(student, groups)
    for wanted, found in zip(outputs(zeroed, inputs), outputs(student, inputs), strict=True):
        assert wanted.shape == found.shape
        assert float((found - wanted).abs().max() / (wanted.max() - wanted.min())) <= 1e-5
    check_sizes(graph, student, groups)
    check_shapes(student, inputs)
    larger = tuple(torch.cat([x, x[:1]]) for x in inputs)
    assert outputs(student, larger)[0].shape[0] == 3, "any batch size"
    return student


def check_sizes(graph, student, groups):
    """Every layer and vector has lost what the groups say, and nothing else."""
    lost = {}
    for group in groups:
        for name, channels in (*group.producers, *group.vectors):
            lost[name] = lost.get(name, 0) + len(channels)
    assert list(g.layers(student)) == list(g.layers(graph))
    for name, layer in g.layers(graph).items():
        assert len(g.weight(student, layer)) == len(g.weight(graph, layer)) - lost.get(name, 0)
    for path in {path for group in groups for path, _ in group.vectors}:
        assert g.get_tensor(student, path).numel() < g.get_tensor(graph, path).numel()
    num_weights = [sum(v.numel() for v in net.state_dict().values()) for net in (student, graph)]
    assert num_weights[0] < num_weights[1]


def check_shapes(student, inputs):
    for node, values in g.walk(student, inputs):
        for source in node.all_input_nodes:
            if isinstance(values.get(source), torch.Tensor):
                assert g.shape(source) == values[source].shape, source


# Every net


@pytest.mark.parametrize("name", TINY)
def test_removing_is_zeroing_what_is_read(name):
    graph, _, inputs = tiny(name)
    groups = channel_groups(graph)
    check_removal(graph, inputs, some(groups, 0.4))
    check_removal(graph, inputs, some(groups, 1.0))


@pytest.mark.parametrize("name", ["pre-activation", "activations", "depthwise inverted residual"])
def test_removing_is_zeroing_in_an_equalized_net(name):
    graph, stats, inputs = tiny(name)
    graph = g.duplicate(graph)
    equalize_(graph, stats, mode="free")
    groups = some(channel_groups(graph), 0.4)
    assert any(group.vectors for group in groups)
    check_removal(graph, inputs, groups)


@pytest.mark.parametrize("name", TINY)
def test_every_output_channel_is_in_one_group_or_has_a_reason(name):
    graph, _, _ = tiny(name)
    grouped = [(name, c) for group in channel_groups(graph) for name, channels in group.producers for c in channels]
    assert len(grouped) == len(set(grouped))
    skipped = {record.name: record.reason for record in unremovable(graph)}
    for name, layer in g.layers(graph).items():
        found, channels = sum(name == other for other, _ in grouped), len(g.weight(graph, layer))
        assert (found == channels) == (name not in skipped) and (
            found == 0 or found == channels or "of" in skipped[name]
        )


def test_removal_goes_on_where_it_stopped():
    graph, _, inputs = tiny("depthwise inverted residual")
    student = check_removal(graph, inputs, some(channel_groups(graph), 0.3))
    check_removal(student, inputs, some(channel_groups(student), 0.3))


# What goes together


def summary(name):
    return described(channel_groups(tiny(name)[0]))


def test_groups_of_the_usual_blocks():
    assert summary("chain") == ["0.conv -> 1.conv: 8 channels", "1.conv -> 2.2: 8 channels"]
    assert "0.conv + 1.1.conv + 3.1.conv -> 1.0.conv + 3.0.conv + 5.2: 6 channels" in summary("residual")
    assert "1.0.conv + 1.1.conv -> 1.1.conv + 1.2.conv: 12 channels" in summary("depthwise inverted residual")
    assert "0.conv -> 1.1.conv + 2.1.conv + 3.conv: 4 channels" in summary("concat")
    assert "stem.conv + expand -> reduce + last.conv: 8 channels" in summary("squeeze and excitation")
    assert summary("grouped")[1] == "1.conv -> 2.conv: 3 x 4 channels"


def test_a_group_lists_the_features_of_a_flattened_channel():
    group = channel_groups(tiny("linear after flatten")[0])[1]
    assert group == Group((("0.conv", (1,)),), (("3", tuple(range(16, 32))),), ())


def test_a_depthwise_multiplier_goes_with_its_input():
    graph, inputs = folded(nn.Sequential(block(3, 6), block(6, 12, groups=6), block(12, 4, 1), head(4)))
    group = channel_groups(graph)[2]
    assert group.producers == (("0.conv", (2,)), ("1.conv", (4, 5)))
    assert group.consumers == (("1.conv", (2,)), ("2.conv", (4, 5)))
    student = check_removal(graph, inputs, [group])
    assert g.layers(student)["1.conv"].groups == 5


def test_convolution_groups_lose_the_same_position():
    graph, _, inputs = tiny("grouped")
    group = channel_groups(graph)[0]
    assert group.consumers == (("1.conv", (0, 2, 4, 6)),)
    student = check_removal(graph, inputs, [group])
    assert g.layers(student)["1.conv"].groups == 4 and g.weight(student, g.layers(student)["1.conv"]).shape[1] == 1


def test_vectors_between_layers_are_listed():
    paths = {path for group in channel_groups(tiny("pre-activation")[0]) for path, _ in group.vectors}
    assert {"1.0.scale", "1.0.shift"} <= paths
    assert channel_groups(tiny("activations")[0])[13].vectors == (("2.act.weight", (1,)),)


# Sizes and positions written into the graph


class Between(nn.Module):
    """Two blocks, and `between(x)` of 12 channels, 16 by 16, that keeps their number."""

    def __init__(self, between):
        super().__init__()
        self.first, self.last, self.head, self.between = block(3, 12), block(12, 4), head(4), between

    def forward(self, x):
        return self.head(self.last(self.between(self.first(x))))


def shuffle(x):
    return x.view(-1, 3, 4, 16, 16).transpose(1, 2).reshape(-1, 12, 16, 16)


def uneven_split(x):
    a, b = x.split([5, 7], 1)
    return torch.cat([b * 2, a.relu()], 1)


def chunk(x):
    a, b, c = x.chunk(3, 1)
    return torch.cat([c, a + b, b], 1)


def slices(x):
    return torch.cat([x[:, :4].sigmoid(), x[:, 4:-3], x[:, -3:] * 2], 1)


def pad_channels(x):
    """As the shortcut of CIFAR's ResNets."""
    return x + F.pad(x[:, 1:9], (0, 0, 0, 0, 1, 3))


def expand(x):
    return x * x.mean((2, 3)).view(-1, 12, 1, 1).expand(-1, 12, 16, 16)


def constant(x):
    return x * torch.tensor([float(c) for c in range(12)]).view(12, 1, 1) + torch.tensor([0.5] * 16)


def crop(x):
    return F.pad(x, (-1, 1, 0, 0))


@pytest.mark.parametrize(
    "between", [shuffle, uneven_split, chunk, slices, pad_channels, expand, constant, crop], ids=lambda f: f.__name__
)
def test_written_sizes_follow(between):
    graph, inputs = folded(Between(between))
    groups = channel_groups(graph)
    assert {name for group in groups for name, _ in group.producers} == {"first.conv", "last.conv"}
    for seed in range(4):
        check_removal(graph, inputs, some(groups, 0.4, seed))


def test_a_constant_used_twice_ties_its_users():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.act = conv(3, 6), conv(6, 6), conv(6, 5), nn.PReLU(6)

        def forward(self, x):
            return self.c(self.act(self.b(self.act(self.a(x)))))

    graph, inputs = folded(Twice())
    assert described(channel_groups(graph)) == ["a + b -> b + c: 6 channels"]
    check_removal(graph, inputs, channel_groups(graph)[2:4])


# What is left alone


class Fixed(nn.Module):
    def __init__(self, between):
        super().__init__()
        self.first, self.last, self.between = conv(3, 4), conv(4, 5), between

    def forward(self, x):
        return self.last(self.between(self.first(x)))


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (nn.GroupNorm(2, 4), "group_norm"),
        (lambda x: x.softmax(1), "softmax"),
        (lambda x: x[:, ::2].repeat(1, 2, 1, 1), "slice"),
        (lambda x: x.permute(0, 2, 3, 1).roll(1, 3).permute(0, 3, 1, 2), "roll"),
        (lambda x: x.permute(0, 2, 3, 1) @ torch.eye(4), "matmul"),
        (lambda x: x * x.mean(1, keepdim=True), "mean"),
        (lambda x: F.conv3d(x.unsqueeze(-1), torch.ones(4, 4, 1, 1, 1)).squeeze(-1), "conv3d"),
    ],
    ids=["group norm", "softmax", "strided slice", "roll", "matmul", "mean over channels", "conv3d"],
)
def test_what_cannot_be_followed_is_left_with_a_reason(between, reason):
    model = Fixed(between)
    if reason == "matmul":
        model.last = nn.Linear(4, 5)
    graph, _ = folded(model)
    assert channel_groups(graph) == ()
    first, last = unremovable(graph)
    assert first.name == "first" and reason in first.reason and last.reason


def test_inputs_and_outputs_of_the_network_stay():
    graph, _ = folded(nn.Sequential(Residual(conv(3, 3)), conv(3, 4)))
    assert channel_groups(graph) == ()
    assert [record.reason for record in unremovable(graph)] == ["tied to the network's input", "the network returns it"]


def test_a_spatial_gate_stays_with_all_it_scales():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.gate, self.last = conv(3, 4), conv(4, 1), conv(4, 5)

        def forward(self, x):
            x = self.first(x)
            return self.last(x * self.gate(x).sigmoid())

    graph, _ = folded(Gate())
    assert channel_groups(graph) == () and "would go together" in unremovable(graph)[0].reason


# Errors


@pytest.mark.parametrize(
    ("name", "emptied"), [("chain", "0.conv, 1.conv"), ("channel shuffle and split", "body.0.conv")]
)
def test_a_layer_is_never_emptied(name, emptied):
    graph, _, inputs = tiny(name)
    before = outputs(graph, inputs)
    groups = [group for group in channel_groups(graph) if group.producers[0][0] in ("0.conv", "stem.conv")]
    with pytest.raises(
        ChannelsError, match=rf"{emptied}.*: no channel would be left, and one is the least; keep a group"
    ):
        remove_(graph, groups)
    assert all(map(torch.equal, outputs(graph, inputs), before))


def test_groups_of_another_graph_are_refused():
    graph = g.duplicate(tiny("chain")[0])
    groups = channel_groups(graph)
    remove_(graph, groups[:1])
    with pytest.raises(ChannelsError, match=r"0\.conv -> 1\.conv: 1 channel is no group of this graph; find groups"):
        remove_(graph, groups[7:8])


# Real architectures


@pytest.mark.slow
@pytest.mark.parametrize("name", CNNS)
def test_removing_is_zeroing_in_a_cnn(name):
    torch.manual_seed(0)
    model, _ = load_model(name)
    x = torch.randn(16, 3, 64, 64)
    randomise_batchnorm_(model, torch.Generator().manual_seed(1))
    calibrate_batchnorm_(model, x)
    graph, _ = fold(model.eval(), (x[:2],))
    groups = channel_groups(graph)
    assert {record.reason for record in unremovable(graph)} == {"the network returns it"}
    check_removal(graph, (x[:2],), some(groups, 0.2))
