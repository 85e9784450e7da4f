"""Whole channels as a method: a student that is smaller, what it loses, and what it must not lose."""

from __future__ import annotations

import functools
import re

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from datafree import Recipe, Run, compress
from datafree import graph as g
from datafree.allocation.channels import PruneError, _Reader
from datafree.graph import layer_macs
from datafree.run.evaluate import evaluate_models
from nets import NETS, block, calibrate_batchnorm_, compressed, conv, head, randomise_batchnorm_

FLOAT = {"weights": {"bits": None}, "activations": {"bits": None}, "signal": {"images": 4}, "equalize": "off"}
SLOW = pytest.mark.slow
SHAPES = (
    "residual", "depthwise inverted residual", "concat", "grouped", *(pytest.param(n, marks=SLOW) for n in (
        "chain", "squeeze and excitation", "linear after flatten", "channel shuffle and split", "two inputs",
        "dict output")),
)  # fmt: skip
EXACT = {"damping": 1e-6}  # of H, so that a refit that can be exact is


def recipe(sparsity=0.2, **fields):
    return Recipe(**{**FLOAT, "prune": {"pattern": "channels", "sparsity": sparsity}, **fields})


def run_of(name, **fields):
    return compressed(name, recipe(**fields).dump())


def outputs(net, inputs):
    with torch.no_grad():
        return tree_leaves(net(*inputs))


def shapes(graph):
    """Of each layer's weight; of a student's, that of what is stored."""
    return {name: tuple(g.get_tensor(graph, f"{name}.weight").shape) for name in g.layers(graph)}


def built(*parts):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(*parts).eval()
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.normal_(module.bias)
    randomise_batchnorm_(model, torch.Generator().manual_seed(0))
    return model


def images(count=8):
    """Noise of another brightness and contrast in every image, so that outputs differ."""
    noise, offset, scale = (
        torch.randn(count, *shape, generator=torch.Generator().manual_seed(i))
        for i, shape in enumerate([(3, 16, 16), (3, 1, 1), (1, 1, 1)])
    )
    return noise * (scale / 4).exp() + offset / 2


def apart(found, wanted):
    """Squared error of an output, as a share of its variance."""
    return float((found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


# A smaller student


@pytest.mark.parametrize("name", SHAPES)
def test_the_student_is_smaller_and_the_teacher_is_not(name):
    model, inputs = NETS[name]()
    run = run_of(name)
    summary, before, after = run.summary, shapes(run.teacher), shapes(run.student)
    assert 0.65 * summary.float_macs < summary.macs <= 0.8 * summary.float_macs
    assert summary.macs == sum(layer_macs(run.student).values()) and summary.bytes < summary.float_bytes
    assert list(after) == list(before) == list(g.layers(run.teacher))
    assert all(
        len(a) == len(b) and all(x <= y for x, y in zip(a, b, strict=True)) for a, b in zip_shapes(after, before)
    )
    assert sum(map(numel, after.values())) < sum(map(numel, before.values()))
    larger = tuple(torch.cat([x, x[:1]]) for x in inputs)
    for given in (inputs, larger):
        found = outputs(run.student, given)
        assert [v.shape for v in found] == [v.shape for v in outputs(model, given)]
        assert all(bool(torch.isfinite(v).all()) for v in found)
    for found, wanted in zip(outputs(run.teacher, inputs), outputs(model, inputs), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_layers_alike_lose_the_same_share():
    """Every set about half of its channels, eight or sixteen at a time."""
    torch.manual_seed(0)
    wide = [32, 96, 48]
    model = nn.Sequential(block(3, 32), block(32, 96), block(96, 48), head(48))
    parts = {"weights": {"bits": None}, "activations": {"bits": None}, "signal": {"images": 2}}
    prune = {"pattern": "channels", "sparsity": 0.7, "scope": "layer"}
    run = compress(model, Recipe(**parts, prune=prune), torch.zeros(1, 3, 8, 8))
    left = [shape[0] for shape in shapes(run.student).values()][:-1]
    assert all(n % 8 == 0 and 0.4 <= n / w <= 0.7 for n, w in zip(left, wide, strict=True))


def zip_shapes(a, b):
    return [(a[name], b[name]) for name in a]


def numel(shape):
    return torch.Size(shape).numel()


@pytest.mark.parametrize(
    "name, bits", [("depthwise inverted residual", 4), pytest.param("channel shuffle and split", None, marks=SLOW)]
)
def test_a_smaller_student_comes_back_from_its_directory(name, bits, tmp_path):
    parts = {} if bits is None else {"weights": {"bits": bits}, "activations": {"bits": 8}}
    run, (_, inputs) = run_of(name, **parts), NETS[name]()
    run.save(tmp_path / "run")
    loaded = Run.load(tmp_path / "run")
    assert (
        loaded.summary == run.summary and loaded.recipe == run.recipe and shapes(loaded.student) == shapes(run.student)
    )
    for a, b in ((run.student, loaded.student), (run.teacher, loaded.teacher)):
        assert all(torch.equal(x, y) for x, y in zip(outputs(a, inputs), outputs(b, inputs), strict=True))
    for a, b in zip(run.layers, loaded.layers, strict=True):
        assert torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)


def test_layers_that_lost_their_outputs_are_left_out_of_a_comparison():
    run, x = run_of("chain"), images()
    lost = [n for n in shapes(run.teacher) if shapes(run.student)[n][0] < shapes(run.teacher)[n][0]]
    found = evaluate_models(run.student, run.teacher, [(x, torch.zeros(8, dtype=torch.long))])
    assert lost and set(found.layer_sqnr_db) == set(shapes(run.teacher)) - set(lost)


def test_agreement_is_predicted_of_a_smaller_student():
    model, inputs = NETS["chain"]()
    run = compress(model, recipe(), inputs, predict=True)
    assert run.summary.estimate is not None and 0 <= run.summary.estimate.agreement <= 100


# Which channels


def test_what_nobody_reads_goes_first():
    """Three channels of eight have zero weights in all that read them; three have to go."""
    model = built(block(3, 8), block(8, 8, stride=2), head(8))
    with torch.no_grad():
        model[1].conv.weight[:, [1, 4, 6]] = 0
    run = compress(model, recipe(0.3).updated(["slim=off"]), images())  # which would take them first
    assert shapes(run.student) == {"0.conv": (5, 3, 3, 3), "1.conv": (8, 5, 3, 3), "2.2": (5, 8)}
    rows = g.get_tensor(run.teacher, "0.conv.weight")[[0, 2, 3, 5, 7]]
    assert torch.equal(g.get_tensor(run.student, "0.conv.weight"), rows)
    (found,), (wanted,) = outputs(run.student, (images(),)), outputs(model, (images(),))
    assert float((found - wanted).abs().max()) < 1e-4 and apart(found, wanted) < 1e-6


def test_the_mean_of_a_channel_goes_into_the_bias():
    """Two channels are constants other than zero, and what reads them looks at one pixel."""
    model = built(block(3, 8), block(8, 8, 1), head(8))
    with torch.no_grad():
        model[0].bn.weight[[2, 5]] = 0
        model[0].bn.bias[[2, 5]] = torch.tensor([1.3, 0.7])
    run = compress(model, recipe(0.2).updated(["slim=off"]), images())
    assert torch.equal(
        g.get_tensor(run.student, "0.conv.weight"), g.get_tensor(run.teacher, "0.conv.weight")[[0, 1, 3, 4, 6, 7]]
    )
    moved = g.get_tensor(run.student, "1.conv.bias") - g.get_tensor(run.teacher, "1.conv.bias")
    weights = g.get_tensor(run.teacher, "1.conv.weight")[:, [2, 5], 0, 0]
    torch.testing.assert_close(moved, weights @ torch.tensor([1.3, 0.7]), rtol=1e-3, atol=1e-4)
    assert float(moved.abs().max()) > 0.3
    (found,), (wanted,) = outputs(run.student, (images(),)), outputs(model, (images(),))
    assert float((found - wanted).abs().max()) < 1e-4 and apart(found, wanted) < 1e-6


@torch.no_grad()
def doubled_(part, other):
    """Make the second half of a block's channels copies of the first."""
    half = len(part.conv.weight) // 2
    for values in (part.conv.weight, part.bn.weight, part.bn.bias, part.bn.running_mean, part.bn.running_var):
        values[half:] = values[:half]


@pytest.mark.parametrize("sequential", [False, True])
def test_the_twin_takes_over(sequential):
    """Channels c and c + 4 are the same: of a pair, either may go, and its weights go to the other."""
    model = built(block(3, 8), block(8, 8), head(8))
    doubled_(model[0], model[1])
    run = compress(model, recipe(0.3, solve={**EXACT, "sequential": sequential}), images())
    rows, kept = g.get_tensor(run.teacher, "0.conv.weight"), g.get_tensor(run.student, "0.conv.weight")
    twins = [[c for c in range(8) if torch.equal(rows[c], row)] for row in kept]
    assert len(kept) == 5 and sorted({c for pair in twins for c in pair}) == list(range(8))
    summed = {tuple(pair): g.get_tensor(run.teacher, "1.conv.weight")[:, pair].sum(1) for pair in twins}
    weight = g.get_tensor(run.student, "1.conv.weight")
    for pair, wanted in summed.items():
        found = sum(weight[:, i] for i, other in enumerate(twins) if tuple(other) == pair)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0.05)
    (found,), (wanted,) = outputs(run.student, (images(),)), outputs(model, (images(),))
    assert apart(found, wanted) < 5e-3


@functools.cache
def remembering(name, text):
    """A net whose BatchNorm remembers these images; outputs differ from image to image."""
    model, _ = NETS[name]()
    calibrate_batchnorm_(model, images(64))
    return compress(model, Recipe.parse(text), images())


@pytest.mark.parametrize("name", ["chain", pytest.param("residual", marks=SLOW)])
def test_channels_go_where_they_do_least_harm(name):
    """The output moves less than where a layer loses its last two channels, which saves no more."""
    run = remembering(name, recipe(0.2, signal={"images": 32}).dump())
    ours, others = apart(*(outputs(net, (images(64),))[0] for net in (run.student, run.teacher))), []
    for reader in list(g.layers(run.teacher))[1:-1]:
        weight = g.get_tensor(run.teacher, f"{reader}.weight").clone()
        weight[:, -2:] = 0
        net = g.with_weights(run.teacher, {reader: weight})
        others.append(apart(*(outputs(each, (images(64),))[0] for each in (net, run.teacher))))
    assert ours < min(others)


def test_a_kept_layer_keeps_its_channels():
    run, free = run_of("residual", layers={"1.0.conv": "keep"}), run_of("residual")
    assert shapes(run.student)["1.0.conv"] == shapes(run.teacher)["1.0.conv"] == (8, 6, 3, 3)
    assert shapes(free.student)["1.0.conv"][0] < 8
    assert torch.equal(*(g.get_tensor(net, "1.0.conv.weight") for net in (run.student, run.teacher)))
    assert run.summary.macs <= 0.8 * run.summary.float_macs


@pytest.mark.parametrize("method", ["nearest", pytest.param("straight_through", marks=SLOW)])
def test_every_method_loses_channels(method):
    solve = {"method": method} | ({"steps": 2, "rows": 32} if method == "straight_through" else {})
    run = run_of("chain", solve=solve)
    assert run.summary.macs <= 0.8 * run.summary.float_macs
    assert {r.name: tuple(r.weight.shape) for r in run.layers} == {
        r.name: (shapes(run.student)[r.name][0], numel(shapes(run.student)[r.name][1:])) for r in run.layers
    }


def test_layers_in_sequence_or_each_by_itself():
    run, other = (run_of("residual", solve={"sequential": s}) for s in (True, False))
    assert run.summary.macs <= 0.8 * run.summary.float_macs
    assert shapes(run.student) == shapes(other.student), "the choice is made before"
    weights = [torch.cat([r.weight.flatten() for r in x.layers]) for x in (run, other)]
    assert not torch.equal(*weights)


# With integers


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("chain", marks=SLOW), "grouped"])
def test_integers_have_the_smaller_shapes(name):
    given = {"signal": {"images": 16}}
    small = remembering(name, recipe(**given).dump())
    run = remembering(name, recipe(weights={"bits": 8}, activations={"bits": 8}, **given).dump())
    assert run.summary.macs <= 0.8 * run.summary.float_macs and {r.bits for r in run.layers} == {8}
    for result in run.layers:
        weight = g.get_tensor(run.student, f"{result.name}.weight")
        assert weight.dtype == torch.int8 and tuple(result.weight.shape) == tuple(weight.flatten(1).shape)
        assert len(result.weight_qparams.scale) == len(result.bias) == len(weight)
    assert shapes(run.student) == shapes(small.student) != shapes(run.teacher)
    found, wanted = (outputs(each.student, (images(64),))[0] for each in (run, small))
    assert 0 < apart(found, wanted) < 0.1


def test_bytes_are_of_what_is_left():
    run = run_of("chain", weights={"bits": 4}, activations={"bits": 8})
    sizes = [(r.weight.numel() * r.bits + 7) // 8 + 8 * len(r.bias) for r in run.layers]
    assert run.summary.bytes == sum(sizes) and run.summary.sparsity == 0


def test_one_scale_for_a_tensor_and_vectors_behind_layers():
    parts = {"equalize": "free", "weights": {"bits": 8, "per": "tensor"}}
    run = remembering("depthwise inverted residual", recipe(**parts).dump())
    assert any(g.note(n).v_o for n in run.teacher.graph.nodes)
    assert all(len(r.weight_qparams.scale) == 1 for r in run.layers)
    assert run.summary.macs <= 0.8 * run.summary.float_macs
    found, wanted = (outputs(net, (images(64),))[0] for net in (run.student, run.teacher))
    assert 0 < apart(found, wanted) < 0.5


# Prices


def least(weight, h, stays):
    """Error of a row's output with its weights at their best where they stay, and those weights."""
    best = torch.zeros_like(weight)
    best[stays] = torch.linalg.solve(h[stays][:, stays], h[stays] @ weight)
    return float((weight - best) @ h @ (weight - best)), best


def price(weight, h, taps, columns, rows, channel):
    """Of one channel of one group: what it costs with the others' help, and without."""
    stays = columns[:, None].expand(-1, taps).flatten()
    own = torch.zeros(len(columns), taps, dtype=torch.bool).index_fill_(0, torch.tensor([channel]), True).flatten()
    helped = alone = 0.0
    for row in weight[rows]:
        before, best = least(row, h, stays)
        helped += least(row, h, stays & ~own)[0] - before
        alone += float((best * own) @ h @ (best * own))
    return helped, alone


@pytest.mark.parametrize("groups, channels, taps", [(1, 5, 1), (1, 4, 4), (3, 3, 2)])
@pytest.mark.parametrize("gone", [False, True], ids=["whole", "some gone"])
def test_a_price_is_what_least_squares_says(groups, channels, taps, gone):
    generator = torch.Generator().manual_seed(groups + taps)
    size, outs = channels * taps, 4
    weight = torch.randn(groups, outs, size, generator=generator)
    root = torch.randn(groups, size, 3 * size, generator=generator)
    h = root @ root.transpose(1, 2) / size
    columns, rows = torch.ones(groups, channels, dtype=torch.bool), torch.ones(groups, outs, dtype=torch.bool)
    if gone:
        columns[:, 1], rows[:, 0] = False, False
    found = _Reader(weight, h, taps, 3.0, columns.flatten(), rows.flatten()).costs().view(groups, channels)
    for i in range(groups):
        for c in range(channels):
            helped, alone = price(weight[i].double(), h[i].double(), taps, columns[i], rows[i], c)
            assert helped <= alone
            wanted = 3.0 * (helped * alone) ** 0.5 if columns[i, c] else 0.0
            assert float(found[i, c]) == pytest.approx(wanted, rel=1e-3, abs=1e-4)


def test_prices_of_blocks_are_those_of_a_block_diagonal_h():
    generator = torch.Generator().manual_seed(0)
    weight, root = torch.randn(1, 4, 12, generator=generator), torch.randn(2, 6, 20, generator=generator)
    blocks = root @ root.transpose(1, 2)
    columns, rows = torch.tensor([True, False, True, True, True, True]), torch.ones(4, dtype=torch.bool)
    whole = _Reader(weight, torch.block_diag(*blocks)[None], 2, 1.0, columns, rows).costs()
    torch.testing.assert_close(_Reader(weight, blocks, 2, 1.0, columns, rows).costs(), whole, rtol=1e-4, atol=1e-4)
    assert float(whole[1]) == 0 and float(whole[[0, 2, 3, 4, 5]].min()) > 0


# Errors


@pytest.mark.parametrize("name", ["depthwise with multiplier", pytest.param("channel shuffle and split", marks=SLOW)])
def test_a_share_that_cannot_be_is_told_with_one_that_can(name):
    with pytest.raises(PruneError) as caught:
        run_of(name, sparsity=0.99)
    message = re.fullmatch(
        r"whole channels can save at most (\d+) % of this network's multiply-adds, 99 % were asked for; "
        r"lower prune\.sparsity, or raise budget\.macs to (\d+)",
        str(caught.value),
    )
    most, macs = int(message[1]) / 100, int(message[2])
    run = run_of(name, sparsity=most)
    assert macs <= run.summary.macs <= (1 - most) * run.summary.float_macs < macs + 0.01 * run.summary.float_macs


def test_a_network_without_channels_to_remove_says_so():
    model = nn.Sequential(conv(3, 5, bias=True), nn.Flatten()).eval()
    with pytest.raises(PruneError, match=r"^whole channels can save at most 0 % .* 20 % were asked for; lower"):
        compress(model, recipe(), images())


def test_where_every_layer_is_kept_nothing_can_be_saved():
    with pytest.raises(PruneError, match=r"at most 0 % "):
        run_of("chain", layers={"1.conv": "keep"})


def test_no_share_is_no_change():
    run = run_of("chain", sparsity=0.0)
    assert run.summary.macs == run.summary.float_macs and shapes(run.student) == shapes(run.teacher)


@pytest.mark.slow
def test_wide_sets_keep_a_multiple_of_sixteen_channels():
    """16 channels at a time is what integer kernels take; narrow sets lose one after another."""
    model = built(block(3, 112), block(112, 24), head(24))
    run = compress(model, recipe(0.4), torch.randn(2, 3, 8, 8))
    widths = {name: shape[0] for name, shape in shapes(run.student).items()}
    wide, narrow = widths["0.conv"], widths["1.conv"]
    assert wide % 16 == 0 and wide < 112
    assert narrow <= 24
    assert run.summary.macs <= 0.6 * run.summary.float_macs


def test_layers_whose_channels_stay_are_listed_with_the_reason():
    model, inputs = NETS["chain"]()
    run = compress(model, recipe(signal={"kind": "propagated", "images": 2}), inputs)
    assert {(s.name, s.reason) for s in run.summary.skipped} == {
        ("2.2", "output channels stay: the network returns it")
    }
