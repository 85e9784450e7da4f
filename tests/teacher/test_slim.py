"""What does nothing goes, and the function stays: on every tiny net with dead channels, and on one net a cause."""

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from datafree import Recipe, Run, compress
from datafree import graph as g
from datafree.graph.capture import trace
from datafree.records import Slimmed
from datafree.teacher.batchnorm import fold_batchnorm_
from datafree.teacher.constants import find_constants, still_channels
from datafree.teacher.slim import slim
from nets import NETS, randomise_batchnorm_

UNCAPTURABLE = "in place through a view"
REMEMBERS_OTHERWISE = "dead channels"  # its BatchNorm remembers constants that its weights do not make of noise
LOSES_CHANNELS = (
    "chain", "residual", "depthwise inverted residual", "concat", "squeeze and excitation",
    "channel shuffle and split", "pre-activation", "linear after flatten", "transposed conv",
)  # fmt: skip


def nets(*but):
    """All others; those that lose no channels are for `make test-all`."""
    names = [name for name in NETS if name not in but]
    return [name if name in LOSES_CHANNELS else pytest.param(name, marks=pytest.mark.slow) for name in names]


def folded(model, inputs):
    teacher = trace(model, inputs)
    return teacher, fold_batchnorm_(teacher)[0]


def outputs(network, inputs):
    with torch.no_grad():
        return torch.cat([value.flatten().double() for value in tree_leaves(network(*inputs))])


def error(one, other, inputs):
    """Largest difference of the outputs, as a share of their range."""
    a, b = outputs(one, inputs), outputs(other, inputs)
    return float((a - b).abs().max() / (a.max() - a.min()))


@torch.no_grad()
def kill_(model):
    """A third of the channels of every BatchNorm has gamma 0: beta is all that comes out."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            module.weight[::3] = 0
            module.bias[::6] = -1  # nothing passes a ReLU


def net(*layers):
    model = nn.Sequential(*layers).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                nn.init.normal_(module.bias)
    randomise_batchnorm_(model, torch.Generator().manual_seed(0))
    return model


def slimmed(model, mode="on"):
    inputs = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)
    teacher, stats = folded(model, inputs)
    smaller, left, record = slim(teacher, stats, mode=mode)
    assert error(teacher, smaller, inputs) < 1e-5
    return smaller, left, record


def widths(graph):
    return [len(g.bias(graph, layer)) for layer in g.layers(graph).values()]


@pytest.mark.parametrize("name", nets(UNCAPTURABLE, REMEMBERS_OTHERWISE))
def test_function_stays_and_statistics_follow(name):
    model, inputs = NETS[name]()
    kill_(model)
    teacher, stats = folded(model, inputs)
    smaller, left, record = slim(teacher, stats, mode="on")
    assert error(teacher, smaller, inputs) < 1e-5
    assert bool(record.removed) or name not in LOSES_CHANNELS
    nodes = g.nodes_by_name(smaller)
    assert all(len(s.mean) == len(s.std) == g.shape(nodes[n])[1] for n, s in left.items())
    size = sum(g.weight(smaller, layer).numel() + len(g.bias(smaller, layer)) for layer in g.layers(smaller).values())
    before = sum(g.weight(teacher, layer).numel() + len(g.bias(teacher, layer)) for layer in g.layers(teacher).values())
    assert size == before - record.parameters


@pytest.mark.parametrize("name", nets(UNCAPTURABLE))
def test_constants_are_what_other_inputs_give_too(name):
    model, inputs = NETS[name]()
    kill_(model)
    teacher, _ = folded(model, inputs)
    constants = find_constants(teacher, {}, {}).inputs  # of the graph alone: BatchNorm is not asked
    for node, values in g.walk(teacher, tuple(torch.randn(x.shape) for x in inputs)):
        if g.note(node).layer:
            x, known = values[g.operand(node)], constants[g.layer_name(node)]
            seen = x.movedim(g.type_of(g.read_layer(node)).channel_axis, -1).flatten(0, -2)
            there = ~known.isnan()
            torch.testing.assert_close(seen[:, there], known[there].expand(len(seen), -1), rtol=1e-4, atol=1e-5)


def test_rows_of_zeros_and_columns_of_zeros_go():
    model = net(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        model[0].weight[:2] = 0  # a constant leaves them: the bias, or 0
        model[4].weight[:, 5:] = 0  # nobody reads these
    assert widths(slimmed(model)[0]) == [6, 5, 4]


def test_nobody_reads_what_only_unread_channels_read():
    model = net(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        model[1].weight[4:] *= 0
        model[1].weight[:4, 6:] = 0
    assert widths(slimmed(model)[0]) == [6, 4, 4]


@pytest.mark.parametrize("beta, width", [(-1.0, 5), (1.0, 8)], ids=["zero", "not zero"])
def test_constant_that_meets_padding_goes_only_if_it_is_zero(beta, width):
    model = net(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    with torch.no_grad():
        model[1].weight[:3], model[1].bias[:3] = 0, beta
    assert widths(slimmed(model)[0]) == [width, 4]


def test_depthwise_channel_goes_with_its_constant():
    model = net(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        model[2].weight[:3], model[2].bias[:3] = 0, 1
    assert widths(slimmed(model)[0]) == [5, 5, 4]


def test_branch_that_adds_nothing_goes():
    model, inputs = NETS["residual"]()
    blocks = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in blocks:
            norm.weight[0] = 0 if norm is not blocks[-1] else norm.weight[0]
    teacher, stats = folded(model, inputs)
    adds = [n for n in teacher.graph.nodes if "add" in n.name]
    branch = next(n for add in adds for n in add.all_input_nodes if g.note(n).layer)
    name = g.layer_name(branch)
    for part in ("weight", "bias"):
        g.set_tensor(teacher, f"{name}.{part}", 0 * g.get_tensor(teacher, f"{name}.{part}"))
    smaller, _, record = slim(teacher, stats_without(stats, branch), mode="on")
    assert name not in g.layers(smaller)
    assert any("adds nothing" in line for line in record.removed)
    assert error(teacher, smaller, inputs) < 1e-5


def stats_without(stats, node):
    return {name: s for name, s in stats.items() if name != node.name}


def test_one_channel_stays():
    model = net(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        model[1].weight[:] = 0
    assert widths(slimmed(model)[0]) == [1, 4]


def test_still_channel_that_is_read_loudly_stays():
    model = net(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        model[1].weight[0], model[1].bias[0] = 1e-6, 0  # equalized by hand: small here, large behind
        model[2].weight[:, 0] *= 1e6
    teacher, stats = folded(model, (torch.randn(2, 3, 8, 8),))
    assert still_channels(teacher, stats) == {}


def test_still_channel_goes():
    model = net(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        model[0].weight[0] *= 1e-12
        model[1].running_var[0], model[1].running_mean[0] = 1e-20, model[0].bias[0]
    assert widths(slimmed(model)[0]) == [7, 4]


@pytest.mark.parametrize("dead, width", [(1, 16), (4, 12)])
def test_auto_leaves_widths_alone_for_less_than_a_tenth(dead, width):
    model = net(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 3))
    with torch.no_grad():
        model[1].weight[:dead] = 0
    smaller, _, record = slimmed(model, "auto")
    assert widths(smaller) == [width, 4]
    assert bool(record.removed) == (width < 16)


def test_off_touches_nothing():
    model = net(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        model[1].weight[:4] = 0
    smaller, _, record = slimmed(model, "off")
    assert widths(smaller) == [8, 4]
    assert record == Slimmed()


def test_compress_says_what_went_and_counts_it(tmp_path):
    model = net(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 3))
    with torch.no_grad():
        model[1].weight[:8] = 0
    example = torch.zeros(1, 3, 16, 16)
    whole, run = (
        compress(model, Recipe.preset("w8a8").updated(["signal.images=8", f"slim={mode}"]), example)
        for mode in ("off", "auto")
    )
    assert run.summary.slimmed.removed == ("0 -> 3: 8 channels",)
    assert run.summary.slimmed.parameters == 8 * 27 + 8 + 8 * 36
    assert (run.summary.float_bytes, run.summary.float_macs) == (whole.summary.float_bytes, whole.summary.float_macs)
    assert run.summary.bytes < 0.7 * whole.summary.bytes
    run.save(tmp_path / "run")
    assert Run.load(tmp_path / "run").summary == run.summary


def test_preset_slim_does_nothing_else():
    model = net(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 3))
    with torch.no_grad():
        model[1].weight[0] = 0
    x = torch.randn(2, 3, 16, 16)
    run = compress(model, Recipe.preset("slim"), x)
    assert run.layers == () and run.summary.slimmed.parameters == 27 + 1 + 36
    assert error(model, run.student, (x,)) < 1e-5
