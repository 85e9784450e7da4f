"""Every rewrite keeps the function, and changes what it is there to change: on tiny nets and on real architectures."""

import functools

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from cnns import FAST, SIDE, SIDES, SLOW
from datafree import Recipe, compress, load_model
from datafree import graph as g
from datafree.graph.capture import CaptureError, batch_norms, trace
from datafree.teacher.batchnorm import fold_batchnorm_
from datafree.teacher.equalize import column_range, equalize_, row_range
from datafree.teacher.equalize_depthwise import WIDEST
from nets import FEW_FAST, NETS, THREE_FAST, calibrate_batchnorm_, randomise_batchnorm_

UNCAPTURABLE = "in place through a view"
QUICK = ("timm:test_byobnet",)
COVERED = ["mobilenetv2_100", "efficientnet_b0", "densenet121", "resnet18", "regnety_002"]


def outputs(module, inputs) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([v.flatten() for v in tree_leaves(module(*inputs))])


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference as a share of the output's range."""
    assert a.shape == b.shape
    return float((a - b).abs().max() / (b.max() - b.min()))


@functools.cache
def captured(name: str):
    """(model, inputs, folded graph, stats, kept, number of BatchNorms); tests work on duplicates of the graph."""
    model, inputs = NETS[name]()
    graph = trace(model, inputs)
    count = len(batch_norms(graph))
    return (model, inputs, graph, *fold_batchnorm_(graph), count)


def cnn(name: str):
    """A real architecture with random weights and statistics that fit them, and input to compare on."""
    torch.manual_seed(0)
    model, example = load_model(name)
    side = SIDES.get(name, SIDE)
    x = torch.randn(16, example.shape[1], side, side)  # statistics of fewer images amplify float32's own rounding
    randomise_batchnorm_(model, torch.Generator().manual_seed(1))
    calibrate_batchnorm_(model, x)
    return model.eval(), (x[:2],)


# nets with a depthwise layer whose input comes from one BatchNorm alone
BALANCED = {"depthwise inverted residual", "channel shuffle and split", "upsampling by every transposed conv"}


@pytest.mark.parametrize("name", FEW_FAST)
def test_capture_is_exact_and_functional(name):
    model, inputs = NETS[name]()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    graph = trace(model, inputs)
    assert difference(outputs(graph, inputs), outputs(model, inputs)) < 1e-6
    assert not [n for n in graph.graph.nodes if getattr(getattr(n.target, "_schema", None), "is_mutable", False)]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "the user's model was changed"


def test_capture_takes_any_batch_size():
    model, (x,) = NETS["residual"]()
    graph = trace(model, x)
    batch = torch.randn(5, *x.shape[1:])
    assert difference(outputs(graph, (batch,)), outputs(model, (batch,))) < 1e-6
    assert difference(outputs(graph, (batch[:1],)), outputs(model, (batch[:1],))) < 1e-6


def test_layers_keep_the_users_names():
    model, inputs = NETS["declared out of order"]()
    convs = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert sorted(g.layers(trace(model, inputs))) == sorted(convs)


def test_write_through_a_view_is_refused_with_its_place():
    model, inputs = NETS[UNCAPTURABLE]()
    with pytest.raises(CaptureError, match=r"writes into a tensor .* use the operator that returns a new tensor"):
        trace(model, inputs)


def test_what_cannot_be_captured_says_where():
    class Branches(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(CaptureError, match=r"Branches cannot be captured with input \(2, 3\).*free of data-dependent"):
        trace(Branches(), torch.zeros(1, 3))


def test_example_of_the_wrong_rank_is_refused():
    model, _ = NETS["chain"]()
    with pytest.raises(CaptureError, match=r"with input \(2, 3\).*the example has the right shape"):
        trace(model, torch.zeros(1, 3))


@pytest.mark.parametrize("name", FEW_FAST)
def test_folding_keeps_the_function_and_leaves_no_batchnorm(name):
    model, inputs, graph, stats, kept, count = captured(name)
    assert difference(outputs(graph, inputs), outputs(model, inputs)) <= 1e-5
    assert not batch_norms(graph) and len(stats) == count
    assert len(kept) <= count and all(skip.reason for skip in kept)


@pytest.mark.parametrize("mode", ["free", "foldable", "between", "rows"])
@pytest.mark.parametrize("name", FEW_FAST)
def test_equalization_keeps_the_function_and_changes_ranges(name, mode):
    model, inputs, folded, stats, _, _ = captured(name)
    graph = g.duplicate(folded)
    before = {n: ranges(graph, layer) for n, layer in g.layers(graph).items()}
    moved, equalization = equalize_(graph, stats, mode=mode)
    assert difference(outputs(graph, inputs), outputs(model, inputs)) <= 1e-5
    changed = {n for n, layer in g.layers(graph).items() if not same(before[n], ranges(graph, layer))}
    claimed = {*equalization.cancelled, *equalization.output_vectors, *equalization.input_vectors}
    assert changed <= claimed and set(moved) == set(stats)
    clips_everywhere = name in ("depthwise inverted residual", "squeeze and excitation", "in place")  # nothing cancels
    assert bool(changed) == (mode != "between" or not clips_everywhere)


@pytest.mark.parametrize("name", FEW_FAST)
def test_depthwise_balance_keeps_the_function_and_brings_inputs_to_one_range(name):
    model, inputs, folded, stats, _, _ = captured(name)
    graph = g.duplicate(folded)
    moved, equalization = equalize_(graph, stats, mode="depthwise")
    assert difference(outputs(graph, inputs), outputs(model, inputs)) <= 1e-5
    assert moved == stats
    by_name = g.nodes_by_name(graph)
    for layer in (g.layers(graph)[n] for n in equalization.depthwise):
        scaling = by_name[layer.node].args[0]
        v_i = g.get_tensor(graph, scaling.args[1].target).flatten()
        assert v_i.min() == 1 and v_i.max() <= WIDEST and layer.groups == len(v_i)
        before, after = (g.weight(gm, layer) for gm in (folded, graph))
        assert torch.allclose(after * v_i.view(-1, 1, 1, 1), before, rtol=1e-5) and not torch.equal(after, before)
        assert len(scaling.args[0].users) == 1, "another reader would need the multiply"
    assert bool(equalization.depthwise) == (name in BALANCED)


def test_depthwise_balance_stretches_channels_by_what_batchnorm_knows_of_them():
    """conv, BatchNorm with known gamma, ReLU6, depthwise: r = min(6, mean + 4 std)."""
    conv, bn = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)
    bn.weight.data, bn.bias.data = torch.tensor([0.1, 1.0, 2.0, 0.5]), torch.tensor([0.2, 1.0, 0.0, -4.0])
    model = nn.Sequential(conv, bn, nn.ReLU6(), nn.Conv2d(4, 4, 3, groups=4)).eval()
    graph = trace(model, torch.zeros(1, 3, 8, 8))
    stats, _ = fold_batchnorm_(graph)
    _, equalization = equalize_(graph, stats, mode="depthwise")
    assert equalization.depthwise == ("3",)
    assert (equalization.mode, len(equalization.depthwise)) == ("depthwise", 1)
    found = g.get_tensor(graph, "3.v_i").flatten()
    assert torch.allclose(found, torch.tensor([6 / 0.6, 6 / 5, 1.0, WIDEST]), rtol=1e-5)  # the last is dead: 0


def ranges(graph, layer):
    weight = g.weight(graph, layer)
    return row_range(weight), column_range(weight, layer.groups)


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_equalized_ranges_meet_in_the_middle():
    model, inputs = NETS["chain"]()
    graph = trace(model, inputs)
    stats, _ = fold_batchnorm_(graph)
    equalize_(graph, stats, mode="foldable", rows=False)
    first, second = list(g.layers(graph).values())[-2:]  # pairs before it were moved again by the sweep
    made, used = row_range(g.weight(graph, first)), column_range(g.weight(graph, second), second.groups)
    assert torch.allclose(made, used, rtol=1e-4)


def test_statistics_move_with_the_weights():
    """The mean and std of what a layer puts out are those of its statistics, in the new units."""
    model, (x,) = NETS["chain"]()
    calibrate_batchnorm_(model, x)
    graph = trace(model.eval(), x)
    stats, _ = fold_batchnorm_(graph)
    moved, _ = equalize_(graph, stats, mode="foldable")
    with torch.no_grad():
        for node, values in g.walk(graph, (x,)):
            if node.name in moved:
                y = values[node] = g.execute(node, values)
                assert torch.allclose(y.mean((0, 2, 3)), moved[node.name].mean, atol=2e-2 * float(y.std()))


def test_equalization_off_changes_nothing():
    model, inputs = NETS["chain"]()
    graph = trace(model, inputs)
    before = {n: ranges(graph, layer) for n, layer in g.layers(graph).items()}
    stats, equalization = equalize_(graph, {}, mode="off")
    assert stats == {} and equalization.coverage == 0 and equalization.mode == "off"
    assert all(same(before[n], ranges(graph, layer)) for n, layer in g.layers(graph).items())


@pytest.mark.parametrize("name", THREE_FAST)
def test_student_runs_and_resembles_the_teacher(name):
    model, inputs = NETS[name]()
    run = compress(model, Recipe.preset("w8a8").updated(["signal.images=8", "slim=off"]), inputs)
    wanted, found = outputs(model, inputs), outputs(run.student, inputs)
    assert wanted.shape == found.shape and bool(torch.isfinite(found).all())
    assert difference(outputs(run.teacher, inputs), wanted) <= 1e-5
    stored = {v.dtype for v in run.student.state_dict().values()}
    assert torch.int8 in stored and not torch.equal(found, wanted)


def check_rewrites(name):
    """Within 1e-5 of the output's range, or within thrice what float32 itself does to the user's model."""
    model, inputs = cnn(name)
    graph = trace(model, inputs)
    wanted = outputs(model, inputs)
    exact = outputs(model.double(), tuple(x.double() for x in inputs))
    allowed = max(1e-5, 3 * difference(wanted.double(), exact))
    assert difference(outputs(graph, inputs), wanted) <= 1e-6
    stats, _ = fold_batchnorm_(graph)
    assert difference(outputs(graph, inputs).double(), exact) <= allowed
    for mode in ("free", "foldable"):
        copy = g.duplicate(graph)
        _, equalization = equalize_(copy, stats, mode=mode)
        assert difference(outputs(copy, inputs).double(), exact) <= allowed
        assert equalization.coverage > 0


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAST])
def test_rewrites_keep_the_function_of_a_cnn(name):
    check_rewrites(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_rewrites_keep_the_function_of_a_slower_cnn(name):
    check_rewrites(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", COVERED)
def test_equalization_covers_the_network(name):
    model, inputs = cnn(f"timm:{name}")
    graph = trace(model, inputs)
    stats, _ = fold_batchnorm_(graph)
    for mode in ("free", "foldable"):
        assert equalize_(g.duplicate(graph), stats, mode=mode)[1].coverage >= 95
