"""compress as a whole: the same bits everywhere, nothing of the caller's changed, every signal and preset runs."""

from __future__ import annotations

import functools

import numpy
import pytest
import torch

from datafree import Recipe, compress
from datafree import graph as g
from datafree.execution.pools import processes
from datafree.graph.capture import trace
from datafree.models.load import ModelError
from datafree.recipe import presets
from datafree.records import ActivationBits, InputRange
from datafree.solve.solve_layer import LayerError
from nets import NETS

DEPTHWISE = "depthwise inverted residual"


INDEPENDENT = ("signal.kind=propagated", "solve.sequential=false", "equalize=foldable")


def recipe(*settings, preset=None):
    """A preset on two images; w4a8 with every layer by itself where none is named."""
    return Recipe.preset(preset or "w4a8").updated(["signal.images=2", *(() if preset else INDEPENDENT), *settings])


@functools.cache
def made(name, *settings, seed=0):
    model, inputs = NETS[name]()
    return compress(model, recipe(*settings), inputs, seed=seed)


def bits(run):
    """Everything computed, to compare bit for bit."""
    results = {
        r.name: (r.weight, r.bias, r.weight_qparams.scale, r.weight_qparams.zero_point, r.error_db) for r in run.layers
    }
    scales = [n.args[1:3] for n in run.student.graph.nodes if "quantize_per_tensor" in str(n.target)]
    return results, run.student.state_dict(), [s for s in scales if isinstance(s[0], float)]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


# Determinism


@pytest.mark.parametrize("method", ["gptq", "straight_through"])
def test_the_same_seed_gives_the_same_bits(method):
    settings = (
        ("solve.method=straight_through", "solve.steps=3", "solve.rows=32") if method == "straight_through" else ()
    )
    model, inputs = NETS["chain"]()
    torch.rand(7)  # what happens outside has no say
    assert same(bits(made("chain", *settings)), bits(compress(model, recipe(*settings), inputs)))


@pytest.mark.slow
def test_processes_give_the_same_bits_as_serial():
    model, inputs = NETS["chain"]()
    seen = []
    run = compress(model, recipe(), inputs, pool=processes(2), on_done=lambda result: seen.append(result.name))
    assert same(bits(run), bits(made("chain")))
    assert seen == [r.name for r in run.layers] == list(g.layers(run.teacher))


def test_reversed_order_gives_the_same_bits():
    model, inputs = NETS["chain"]()

    def backwards(function, items):
        return map(function, [*items][::-1])

    run = compress(model, recipe(), inputs, pool=backwards)
    assert same(dict(sorted(bits(run)[0].items())), dict(sorted(bits(made("chain"))[0].items())))
    assert same(bits(run)[1:], bits(made("chain"))[1:])


def test_another_seed_gives_other_bits():
    assert not same(bits(made("chain", seed=1))[1], bits(made("chain"))[1])


def test_values_of_the_example_do_not_matter():
    model, (x,) = NETS["chain"]()
    assert same(bits(compress(model, recipe(), torch.full_like(x[:1], 7.0))), bits(made("chain")))


# What is the caller's


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_nothing_of_the_callers_is_changed(training):
    model, inputs = NETS["chain"]()
    model.train(training)
    model[0].conv.weight.requires_grad_(False)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()]
    given = [x.clone() for x in inputs]
    before = surroundings()
    compress(model, recipe(), inputs)
    assert same(surroundings(), before)
    assert same(dict(model.state_dict()), state) and same(list(inputs), given)
    assert flags == [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()]
    assert all(p.grad is None for p in model.parameters())


def surroundings():
    generators = [torch.get_rng_state(), repr(numpy.random.get_state())]  # beartype, in tests alone, uses Python's own
    return [*generators, torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()]


def test_threads_are_as_before_after_an_error():
    model, inputs = NETS["chain"]()
    before = torch.get_num_threads()
    with pytest.raises(LayerError):
        compress(model, recipe(), inputs, on_range=InputRange((0.0,), (float("inf"),), "a test"))
    assert torch.get_num_threads() == before


def test_student_and_teacher_are_detached_and_in_eval_mode():
    run = made("chain")
    for graph in (run.student, run.teacher):
        assert not graph.training
        assert not any(t.requires_grad for t in graph.state_dict().values())
    with torch.no_grad():
        assert not run.student(NETS["chain"]()[1][0]).requires_grad


# The summary


def test_the_summary_agrees_with_the_run():
    run = made(DEPTHWISE, "layers.2.conv=keep")
    summary = run.summary
    assert (summary.model, summary.seed) == ("Sequential", 0)
    assert summary.num_layers == len(g.layers(run.teacher)) == 6
    assert summary.num_quantized == len(run.layers) == 5
    assert [s.name for s in summary.skipped] == ["2.conv"]
    assert 0 < summary.bytes < summary.float_bytes
    assert 0 < summary.bit_operations < summary.float_bit_operations == 1024 * summary.macs
    assert summary.seconds > sum(r.seconds for r in run.layers) and summary.peak_memory_bytes > 2**20
    assert summary.signal.num_images == 2 and summary.warnings == ()
    assert summary.activations == ActivationBits(8, 8)
    assert (summary.equalization.mode, summary.equalization.num_layers) == ("foldable", 6)
    assert summary.input_range.source == "inferred from the first BatchNorm"
    assert {r.method for r in run.layers} == {"gptq"} and {r.bits for r in run.layers} == {4, 8}


CHAIN_LAYERS = ("0.conv", "1.conv", "2.2")


def test_results_come_one_by_one():
    model, inputs = NETS["chain"]()
    seen = []
    run = compress(model, recipe(), inputs, on_done=seen.append)
    assert [r.name for r in seen] == [r.name for r in run.layers] == list(CHAIN_LAYERS)


def test_the_range_given_is_used_and_said():
    model, inputs = NETS["chain"]()
    run = compress(model, recipe(), inputs, on_range=InputRange((10.0,), (5.0,), "given by a test"))
    assert str(run.summary.input_range) == "mean 10, std 5 (given by a test)"
    assert not same(bits(run)[1], bits(made("chain"))[1])


# Warnings and errors


def test_train_mode_is_warned_of_and_changes_nothing():
    model, inputs = NETS["chain"]()
    run = compress(model.train(), recipe(), inputs)
    assert run.summary.warnings[0] == "the model was in train mode; a copy in eval mode was compressed"
    assert same(bits(run), bits(made("chain")))


def test_no_batchnorm_is_warned_of():
    first, second, *_ = made("no batchnorm at all").summary.warnings
    assert first == (
        "there is no BatchNorm: layers are solved on procedural images, half of them moved towards random classes, "
        "unlike the training data perhaps; the scale of the input is assumed, what layers see is not known"
    )
    assert "scale of the network's input is mean 0, std 1 (assumed" in second and "set it" in second


@pytest.mark.parametrize("value, word", [(float("nan"), "NaN"), (float("inf"), "inf")])
def test_weights_that_are_not_finite_are_named(value, word):
    model, inputs = NETS["chain"]()
    with torch.no_grad():
        model[1].conv.weight[0, 0, 0, 0] = value
    with pytest.raises(ModelError, match=rf"^model\.1\.conv\.weight holds 1 {word} of 576 values"):
        compress(model, recipe(), inputs)


def test_a_loader_without_images_is_refused():
    model, inputs = NETS["chain"]()
    with pytest.raises(ValueError, match=r"^signal\.kind is 'loader' but no images were given; pass images="):
        compress(model, recipe("signal.kind=loader"), inputs)


# Signals and presets


def test_every_signal_runs_and_gives_another_student():
    model, inputs = NETS["chain"]()
    images = tuple(torch.randn(3, *x.shape[1:], generator=torch.Generator().manual_seed(0)) for x in inputs)
    runs = {
        "gaussian": made("chain", "signal.kind=gaussian"),
        "propagated": made("chain"),
        "loader": compress(model, recipe("signal.kind=loader"), inputs, images=images),
    }
    found = {kind: torch.cat([r.bias for r in run.layers]) for kind, run in runs.items()}
    assert all(bool(torch.isfinite(bias).all()) for bias in found.values())
    assert not torch.equal(found["gaussian"], found["propagated"])
    assert not torch.equal(found["loader"], found["propagated"])
    for kind, run in runs.items():
        assert (run.summary.signal.kind, run.summary.signal.num_images) == (kind, 3 if kind == "loader" else 2)


QUICK = {"channels20", "prune50-w4a8"}


@pytest.mark.parametrize("preset", [p if p in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in presets()])
def test_every_preset_runs_on_a_depthwise_net(preset):
    model, (x,) = NETS[DEPTHWISE]()
    x = x[:, :, :8, :8]
    chosen = recipe(preset=preset)
    if chosen.solve.method == "straight_through":
        chosen = chosen.updated(["solve.steps=2", "solve.rows=32"])
    if chosen.signal.kind == "inverted":
        chosen = chosen.updated(["signal.steps=5"])
    run = compress(model, chosen, x)
    with torch.no_grad():
        assert bool(torch.isfinite(run.student(x)).all())
    partly = chosen.prune is not None and chosen.prune.pattern != "unstructured"  # layers that read no lost channel
    assert run.summary.num_layers == 6 and (0 < run.summary.num_quantized < 6) == partly
    is_spent = chosen.budget != run.recipe.budget  # on bits of layers
    spent = {"budget": None, "layers": run.recipe.layers} if is_spent else {}
    assert run.recipe == chosen.model_copy(update=spent) and is_spent == (preset == "w4a4-mixed")


# Memory


def test_a_walk_holds_what_is_still_needed():
    model, (x,) = NETS["chain"]()
    most = 0
    with torch.no_grad():
        for _, values in g.walk(trace(model, x), (x,)):
            most = max(most, len([n for n in values if n.op != "get_attr"]))
    assert most == 1, "a call's one input; the value before it is gone"


def test_a_walk_keeps_a_skip_connection_and_the_outputs():
    model, (x,) = NETS["residual"]()
    graph = trace(model, x)
    counts = {}
    with torch.no_grad():
        for node, values in g.walk(graph, (x,)):
            counts[node.name] = len([n for n in values if n.op != "get_attr"])
    assert max(counts.values()) == 2 == counts["add"]
    model, (x,) = NETS["two outputs"]()
    with torch.no_grad():
        walk = g.walk(trace(model, x), (x,))
        last = [values for _, values in walk][-1]
    kept = [n for n in last if n.op != "get_attr"]
    wanted = tuple(model(x))
    assert len(kept) == 2
    assert all(any(last[n].shape == w.shape and torch.allclose(last[n], w, atol=1e-5) for n in kept) for w in wanted)


def test_a_walk_takes_the_value_put_into_it():
    """What the caller writes for a node is what comes out behind it."""
    model, (x,) = NETS["chain"]()
    graph = trace(model, x)
    last = list(g.layers(graph).values())[-1]
    (out,) = g.outputs(graph)
    with torch.no_grad():
        for node, values in g.walk(graph, (x,)):
            if node is g.node_of(graph, last.node).args[0]:
                values[node] = torch.zeros(2, 8)
        assert torch.equal(values[out], g.bias(graph, last).expand(2, -1))
