"""A student to train on starts as the student, learns what it may, and comes back as integers."""

from __future__ import annotations

import copy
import functools
import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from datafree import Recipe, Run, compress, export_onnx, load, save
from datafree import graph as g
from datafree.quantization import dequantize
from datafree.student.qat import Grid
from nets import NETS

EXAMPLES = Path(__file__).parents[2] / "examples"
FEW = ("signal.images=4", "signal.kind=propagated", "solve.sequential=false", "equalize=foldable")
CASES = {
    "narrow": ("chain", "w3a3", ()),
    "one scale, vectors": ("depthwise inverted residual", "w8a8-tensor", ("equalize=free",)),
    "residual": ("residual", "w4a8", ()),
    "kept in float": ("chain", "w8a8", ("layers={1.conv: keep}",)),
    "pruned": ("chain", "prune50", ()),
    "pruned, integers": ("grouped", "prune50-w4a8", ()),
    "fewer channels": ("chain", "channels20", ()),
    "prescribed grids": ("squeeze and excitation", "w8a8", ("target=arm",)),
    "transposed": ("transposed conv", "w4a8", ()),
}


@functools.cache
def made(name):
    net, preset, settings = CASES[name]
    model, inputs = NETS[net]()
    run = compress(model, Recipe.preset(preset).updated([*FEW, *settings]), inputs)
    return run, tuple(torch.cat([x, -x, x + 1]) for x in inputs)


def answer(net, inputs):
    with torch.no_grad():
        found = net(*inputs)
    return found if isinstance(found, torch.Tensor) else found[0]


def trained(run, inputs, steps=3, lr=3e-3):
    """A module after a few steps towards other answers."""
    net = run.trainable()
    wanted = torch.roll(answer(run.teacher, inputs), 1, 0)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        loss = F.mse_loss(net(*inputs), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return net, losses


@pytest.mark.parametrize("name", CASES)
def test_it_starts_at_the_student(name):
    run, inputs = made(name)
    torch.testing.assert_close(answer(run.trainable(), inputs), answer(run.student, inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_frozen_at_once_it_is_the_student(name):
    run, inputs = made(name)
    again = run.trainable().freeze()
    assert torch.equal(answer(again.student, inputs), answer(run.student, inputs))
    assert [(r.name, r.bits, r.sparsity) for r in again.layers] == [(r.name, r.bits, r.sparsity) for r in run.layers]
    for ours, before in zip(again.layers, run.layers, strict=True):
        assert torch.equal(ours.weight, before.weight) and ours.weight.dtype == before.weight.dtype


@pytest.mark.parametrize("name", CASES)
def test_it_learns_and_comes_back(name, tmp_path):
    run, inputs = made(name)
    net, losses = trained(run, inputs)
    done = net.freeze()
    assert losses[-1] < losses[0]
    found, wanted = answer(done.student, inputs), answer(net, inputs)
    assert not torch.equal(found, answer(run.student, inputs))
    assert float((found - wanted).norm()) < 0.5 * float(wanted.norm()), "nearer to what was trained than nothing is"
    assert done.summary.bytes == run.summary.bytes and done.summary.estimate is None
    assert done.summary.warnings[-1].startswith("trained after it was compressed")
    done.save(tmp_path / "run")
    save(done, tmp_path / "net.safetensors")
    for student in (Run.load(tmp_path / "run").student, load(tmp_path / "net.safetensors")):
        assert torch.equal(answer(student, inputs), found)
    torch.testing.assert_close(answer(done.trainable(), inputs), found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["narrow", "one scale, vectors"])
def test_layers_tell_the_integers_of_the_student(name):
    run, inputs = made(name)
    done = trained(run, inputs)[0].freeze()
    layers, nodes = g.layers(done.student), g.nodes_by_name(done.student)
    for result in done.layers:
        stored = g.weight_node(nodes[layers[result.name].node])
        integers = g.tensor_of(done.student, g.operand(stored)).flatten(1)
        offset = result.weight_qparams.zero_point
        assert torch.equal(integers.long(), result.weight.long() - (offset if len(offset) == 1 else offset[:, None]))
        assert int(result.weight.min()) >= result.weight_qparams.qmin
        assert int(result.weight.max()) <= result.weight_qparams.qmax
        assert bool(torch.isfinite(dequantize(result.weight.float(), result.weight_qparams)).all())


def test_zeros_of_pruned_layers_stay():
    run, inputs = made("pruned")
    done = trained(run, inputs, steps=5)[0].freeze()
    for ours, before in zip(done.layers, run.layers, strict=True):
        assert bool((ours.weight[before.weight == 0] == 0).all())


def test_prescribed_grids_are_not_learned():
    run, _ = made("prescribed grids")
    grids = [m for n, m in run.trainable().named_modules() if isinstance(m, Grid) and "activation_grids" in n]
    assert grids and not any(m.stretch.requires_grad for m in grids)


def test_equal_grids_are_learned_as_one():
    """Values that are only moved stay on their grid."""
    run, _ = made("residual")
    grids = {n.args[1:] for n in run.student.graph.nodes if "quantize_per_tensor.default" in str(n.target)}
    learned = [m for n, m in run.trainable().named_modules() if isinstance(m, Grid) and "activation_grids" in n]
    assert 0 < len(learned) <= len(grids)


def test_a_scale_has_the_gradient_of_the_rounded_value():
    """LSQ's, restated; p is the scale's logarithm."""
    grid = Grid(torch.tensor([0.5]), 3, torch.tensor([0.0]), torch.tensor([7.0]), learned=1)
    x = torch.tensor([-4.0, -0.6, 0.1, 1.2, 9.0], requires_grad=True)
    grid(x).sum().backward()
    q = x.detach() / 0.5
    inside = (q.round() + 3 >= 0) & (q.round() + 3 <= 7)
    slope = torch.where(inside, q.round() - q, (q.round() + 3).clamp(0, 7) - 3)
    assert torch.equal(x.grad, inside.float())
    torch.testing.assert_close(grid.stretch.grad, (0.5 * slope.sum() / (5 * 7) ** 0.5)[None])


def test_the_run_and_its_student_are_not_touched():
    run, inputs = made("narrow")
    before = {k: v.clone() for k, v in run.student.state_dict().items()}
    net, _ = trained(run, inputs)
    net.freeze()
    assert all(torch.equal(v, before[k]) for k, v in run.student.state_dict().items())
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_it_may_be_copied_saved_and_trained_on():
    run, inputs = made("narrow")
    net, _ = trained(run, inputs)
    other = run.trainable()
    other.load_state_dict(net.state_dict())
    assert torch.equal(answer(other, inputs), answer(net, inputs))
    frozen = other.freeze()
    assert torch.equal(answer(frozen.student, inputs), answer(net.freeze().student, inputs))
    assert answer(copy.deepcopy(net.net.get_submodule("1.conv.trained")), ()).shape == (8, 8, 3, 3)


def test_a_frozen_student_hands_back_the_models_type():
    run, inputs = made("narrow")
    half = run.with_ends(torch.float16)
    assert answer(half.trainable(), inputs).dtype == torch.float32
    frozen = half.trainable().freeze()
    assert answer(frozen.student, inputs).dtype == torch.float16
    assert torch.equal(answer(frozen.student, inputs), answer(half.student, inputs))


def test_a_frozen_student_is_exported(tmp_path):
    pytest.importorskip("onnxruntime")
    run, inputs = made("narrow")
    check = export_onnx(replace(trained(run, inputs)[0].freeze()), tmp_path / "net.onnx")
    assert check.sqnr_db > 40


@pytest.mark.slow
def test_the_example_gains(tmp_path, capsys):
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("qat_digits", EXAMPLES / "qat_digits.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    recipe = Recipe.preset("w3a3").updated([*FEW, "first_last=8"])
    (tmp_path / "few.yaml").write_text(recipe.dump())
    example.main(["--recipe", str(tmp_path / "few.yaml"), "--epochs", "1", "--out", str(tmp_path / "run")])
    before, after = (float(line.split("top-1 ")[1].split()[0]) for line in capsys.readouterr().out.splitlines())
    assert after > before
    assert {layer.method for layer in Run.load(tmp_path / "run").layers} == {"trained"}
