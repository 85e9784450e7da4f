"""Published methods in `bench/`: each does what its paper says, on nets where the answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.published import baselines, dfq, zeroq
from datafree import Recipe, compress
from datafree import graph as g
from datafree.app.sentences import distilled_text
from datafree.graph.capture import trace
from datafree.records import InputRange, decibel
from datafree.teacher.batchnorm import fold_batchnorm_
from datafree.teacher.equalize import column_range, row_range
from nets import calibrate_batchnorm_, randomise_batchnorm_

SHAPE = (2, 3, 8, 8)


def plain_net(act: type[nn.Module] = nn.ReLU, *, padding: int = 0) -> nn.Module:
    """Three layers in a row: full, depthwise, 1x1."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3, padding=padding), nn.BatchNorm2d(8), act(),
        nn.Conv2d(8, 8, 3, groups=8, padding=padding), nn.BatchNorm2d(8), act(),
        nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ]  # fmt: skip
    net = nn.Sequential(*layers).eval()
    randomise_batchnorm_(net, torch.Generator().manual_seed(0))
    return net


class Sum(nn.Module):
    """A layer's output added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.body = plain_net()[:3]
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.last = nn.Conv2d(8, 4, 1)
        randomise_batchnorm_(self.branch, torch.Generator().manual_seed(1))

    def forward(self, x):
        x = self.body(x)
        return self.last(x + self.branch(x)).mean((2, 3))


def folded(net):
    teacher = trace(net, torch.zeros(SHAPE))
    return teacher, fold_batchnorm_(teacher)[0]


def names(pairs):
    return [(first.name, second.name) for first, second in pairs]


# ---- DFQ


def test_pairs_are_layers_that_alone_read_each_other():
    assert names(dfq.in_a_row(folded(plain_net())[0])) == [("0", "3"), ("3", "6")]
    assert names(dfq.in_a_row(folded(plain_net(nn.ReLU6))[0])) == []
    assert names(dfq.in_a_row(folded(Sum().eval())[0])) == []


def test_equalization_keeps_the_function_and_gives_both_layers_one_range():
    net, x = plain_net(), torch.randn(SHAPE)
    teacher, stats = folded(net)
    pairs = dfq.in_a_row(teacher)
    moved = dfq.equalized(teacher, stats, pairs)
    torch.testing.assert_close(teacher(x), net(x), rtol=1e-4, atol=1e-5)
    for first, second in pairs:
        ranges = row_range(g.weight(teacher, first)), column_range(g.weight(teacher, second), second.groups)
        torch.testing.assert_close(*ranges, rtol=1e-2, atol=0)
    factor = g.bias(teacher, pairs[0][0]) / g.bias(folded(net)[0], pairs[0][0])
    torch.testing.assert_close(moved[pairs[0][0].node].mean, stats[pairs[0][0].node].mean * factor)


def test_absorption_is_exact_where_values_stay_positive():
    net = plain_net()
    with torch.no_grad():
        net[1].bias += 10
    x = torch.randn(SHAPE) / 10
    teacher, stats = folded(net)
    before = g.bias(teacher, g.layers(teacher)["0"]).clone()
    with torch.no_grad():
        lowest = nn.Sequential(*net[:2])(x).amin((0, 2, 3))
    moved = dfq.absorbed(teacher, stats, dfq.in_a_row(teacher)[:1])
    c = before - g.bias(teacher, g.layers(teacher)["0"])
    torch.testing.assert_close(c, (net[1].bias - 3 * net[1].weight.abs()).clamp(min=0).detach(), rtol=1e-3, atol=1e-4)
    assert bool((c > 1).all()) and bool((c < lowest).all()), "the case at hand: the absorbed part is never cut"
    torch.testing.assert_close(teacher(x), net(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moved["conv2d"].mean, stats["conv2d"].mean - c)


def test_ranges_are_six_deviations_of_batchnorm_and_cut_by_relu():
    net = plain_net(nn.ReLU6)
    teacher, stats = folded(net)
    ranges, means = dfq.propagated(teacher, stats, InputRange((0.0,), (1.0,), "given"), ((-3.0, 3.0),))
    known = stats["conv2d"]
    ends = float((known.mean - 6 * known.std).min()), float((known.mean + 6 * known.std).max())
    assert ranges["conv2d"] == pytest.approx(ends)
    assert ranges["hardtanh"] == (0.0, min(6.0, ends[1]))
    assert ranges[g.placeholders(teacher)[0].name] == (-3.0, 3.0)
    draws = (torch.randn(200_000, 8) * known.std + known.mean).clamp(0, 6).mean(0)
    torch.testing.assert_close(means["hardtanh"], draws, atol=0.05, rtol=0.02)


def test_sums_add_means_and_variances():
    teacher, stats = folded(Sum().eval())
    ranges, means = dfq.propagated(teacher, stats, InputRange((0.0,), (1.0,), "given"), ((-3.0, 3.0),))
    torch.testing.assert_close(means["add"], means["relu"] + stats["conv2d_1"].mean)
    low, high = ranges["add"]
    assert low < float(means["add"].min()) < float(means["add"].max()) < high


def test_replacing_relu6_changes_what_is_cut():
    x = torch.zeros(SHAPE)
    made = dfq.prepare(plain_net(nn.ReLU6), x, replace_relu6=True, seed=0)
    kept = dfq.prepare(plain_net(nn.ReLU6), x, replace_relu6=False, seed=0)
    count = lambda teacher: sum("hardtanh" in str(n.target) for n in teacher.graph.nodes)  # noqa: E731
    assert (count(made.teacher), count(kept.teacher)) == (0, 2)
    assert made.ranges["hardtanh_1"][1] > 6 >= kept.ranges["hardtanh_1"][1]


def test_bias_correction_moves_the_mean_of_the_output_back():
    """Where weights have two bits, outputs are off by a constant; the corrected student is nearer in the mean."""
    net = plain_net()
    made = dfq.prepare(net, torch.zeros(SHAPE), replace_relu6=True, seed=0)
    recipe = Recipe(weights={"bits": 2}, activations={"bits": 8}, first_last="same")
    settings = {on: recipe.updated([*baselines.PLAIN, f"solve.bias_correction={on}"]) for on in ("true", "false")}
    off = {}
    for on, asked in settings.items():
        student = baselines.rounded(made.teacher, asked, made.ranges, made.means)
        before = student.graph.find_nodes(op="call_function", target=g.aten.conv2d.default)[1]
        off[on] = _mean_shift(student, made.teacher, before.name)
    assert off["true"] < 0.7 * off["false"]


def _mean_shift(student, teacher, name):
    """Distance of a layer's mean output from the teacher's, on inputs as BatchNorm remembers them."""
    with torch.no_grad():
        x = torch.randn(256, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        found = []
        for graph in (student, teacher):
            for node, values in g.walk(graph, (x,)):
                if node.name == name:
                    found.append(g.execute(node, values).mean((0, 2, 3)))
    return float((found[0] - found[1]).norm())


# ---- ZeroQ


@pytest.mark.slow
def test_distilled_images_come_nearer_to_what_batchnorm_remembers():
    net, x = plain_net(padding=1), torch.zeros(SHAPE)
    for module in net:
        if isinstance(module, nn.BatchNorm2d):  # statistics that some image has
            module.reset_running_stats()
            module.momentum = None
    net.train()(torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    net.eval()
    noise, made = (zeroq.distill_images(net, x, seed=0, steps=steps) for steps in (0, 40))
    assert made.shape == noise.shape == (32, 3, 8, 8) and not made.requires_grad
    assert _statistics_off(net, made) < 0.5 * _statistics_off(net, noise)
    assert torch.equal(made, zeroq.distill_images(net, x, seed=0, steps=40))


def _statistics_off(net, images):
    with torch.no_grad():
        y = net[0](images)
    m, d = y.mean((2, 3)), y.flatten(2).std(2)
    return float(((m - net[1].running_mean) ** 2 + (d - net[1].running_var.sqrt()) ** 2).sum())


def test_extremes_are_those_of_every_tensor():
    teacher, _ = folded(plain_net())
    x = torch.randn(4, 3, 8, 8)
    found = zeroq.extremes(teacher, x)
    assert found["relu"][0] == 0.0
    assert found[g.placeholders(teacher)[0].name] == (float(x.min()), float(x.max()))


# ---- by name


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_eight_bits_change_little(name):
    net, x = plain_net(), torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    calibrate_batchnorm_(net, x)
    given = {"images": x[:32]} if name == "ZeroQ" else {}
    student = baselines.BASELINES[name](net, x[:1], bits_w=8, bits_a=8, per="tensor", first_last="same", **given)
    with torch.no_grad():
        error, wanted = student(x) - net(x), net(x)
    assert decibel(float(wanted.var()), float(error.square().mean())) > 20


def test_training_on_images_of_the_start_is_what_compress_does():
    net, x = plain_net(padding=1), torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    calibrate_batchnorm_(net, x)
    signal = ["signal.kind=inverted", "signal.steps=2", "signal.images=8"]
    recipe = Recipe.preset("w4a8").updated([*signal, "distill.steps=2", "distill.guard=false"])
    run = compress(net, recipe, x[:1])
    given = {"start_images": run.images, "images": run.images}
    student, said = baselines.by_distilling(net, x[:1], start=recipe, training=recipe, **given)
    assert said == distilled_text(run.summary.distilled) and "after 2 of 2 steps" in said
    with torch.no_grad():
        assert torch.equal(student(x), run.student(x))


@pytest.mark.parametrize("name", baselines.PRUNING)
def test_pruned_share_of_the_weights_is_zero(name):
    student = baselines.PRUNING[name](plain_net(), torch.zeros(SHAPE), sparsity=0.5)
    weights = [g.weight(student, layer) for layer in g.layers(student).values()]
    zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    assert zeros == pytest.approx(0.5, abs=0.02)
    alike = all(abs(float((w == 0).double().mean()) - 0.5) < 0.02 for w in weights)
    assert alike == ("each layer" in name)
