"""Scales away from ties: the same integers from every kernel, and hardly another function."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from datafree import Recipe, compress
from datafree import graph as g
from datafree.execution.pools import serial
from datafree.graph.capture import trace
from datafree.records import LayerResult, QParams
from datafree.signals import make_signal
from datafree.solve.plan import plan_layers
from datafree.solve.problem import Problem, Solution
from datafree.solve.schedule import solve_layers
from datafree.student.assemble import QUANTIZE, assemble
from datafree.student.tie_free_scales import LARGEST, TOLERANCE, near_fractions, snap_scales
from datafree.teacher.batchnorm import fold_batchnorm_
from datafree.teacher.equalize import equalize_
from nets import FEW, NETS, block, conv, head

FAST = ("concat", "pre-activation", "depthwise inverted residual")
EVERY = ["sums", *(n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in FEW)]
CHEAP = ["signal.kind=propagated", "solve.sequential=false", "signal.images=4"]


class Sums(nn.Module):
    """Branches of unlike range: summed, averaged over 4 and 16 positions, concatenated.

    None is an operand twice: its scale could fit but one of the sums, and ties of the other would be left to chance.
    """

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third, self.fourth = block(3, 8), block(8, 8), block(16, 8), block(8, 8)
        self.pool, self.wide, self.head = nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2), head(8)

    def forward(self, x):
        x = self.first(x)
        y = self.pool(x + 0.3 * self.second(x))
        y = self.third(torch.cat([y, self.pool(self.fourth(x))], 1))
        return self.head(self.wide(y)), y.mean((2, 3))


class Readers(nn.Module):
    """A layer's output read before and behind its activation, each by a layer of narrow input, and summed."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = conv(3, 8, bias=True), conv(8, 8), conv(8, 8)
        self.head = head(8)

    def forward(self, x):
        y = self.first(x)
        z = torch.relu(y)
        return self.head(self.second(z) + self.third(y) + z)


class Constants(nn.Module):
    """Products that are no factor of channels: of positions, with a zero, of one element; means of all kinds."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third, self.last = conv(3, 8), conv(8, 8), conv(8, 8), nn.Linear(8, 3)
        self.register_buffer("places", torch.rand(1, 1, 16, 16) + 0.5)
        self.register_buffer("gate", torch.tensor([0.0, *[1.0] * 7]).view(1, 8, 1, 1))
        self.register_buffer("alpha", torch.tensor(0.5))

    def forward(self, x):
        y = self.third(self.second(self.first(x) * self.places) * self.gate) * self.alpha
        return self.last(y.mean((-2, -1))) + y.mean()


MADE = {"sums": Sums, "readers": Readers, "constants": Constants}


@functools.cache
def students(name, preset, target="onnxruntime"):
    """Before and after, each with its layers; and noise to run them on."""
    torch.manual_seed(0)
    model, inputs = (MADE[name]().eval(), (torch.zeros(1, 3, 16, 16),)) if name in MADE else NETS[name]()
    recipe = Recipe.preset(preset).updated([*CHEAP, f"target={target}"])
    teacher = trace(model, inputs)
    stats, _ = fold_batchnorm_(teacher)
    stats, _ = equalize_(teacher, stats, mode=recipe.equalize, rows=recipe.weights.per == "tensor")
    plan, signal = plan_layers(teacher, recipe), make_signal(teacher, stats, recipe.signal, seed=0)
    solution = solve_layers(Problem(teacher, plan, signal, recipe.solve), serial, lambda result: None)
    noise = tuple(torch.randn(64, *x.shape[1:], generator=torch.Generator().manual_seed(3)) for x in inputs)
    return (assemble(solution), solution.layers), snap_scales(solution), noise


def grids_of(student):
    """Scales of tensors between layers, in execution order."""
    return [n.args[1] for n in student.graph.nodes if n.target is QUANTIZE]


def other_integers(student, inputs):
    """How many integers are others where all that is between them is computed in float64."""
    found = 0
    with torch.no_grad():
        for node, values in g.walk(student, inputs):
            if node.target is QUANTIZE and node.args[0].op != "placeholder":
                scale, zero_point, low, high, _ = node.args[1:]
                exact = (torch.round(values[node.args[0]] / scale) + zero_point).clamp(low, high)
                values[node] = g.execute(node, {**values, node.args[0]: values[node.args[0]].float()})
                found += int((values[node] != exact).sum())
            elif node.op == "call_function" and node.target is not QUANTIZE:
                values[node] = g.execute(node, values)
                if "dequantize" in str(node.target):
                    values[node] = values[node].double()
    return found


def test_fractions_are_near_and_have_odd_denominators():
    steps = torch.logspace(-3, 1, 50, dtype=torch.float64)[:, None]
    found = near_fractions(steps)
    assert torch.all((found / steps - 1).abs() <= TOLERANCE) and not torch.equal(found, steps)
    odd = torch.arange(1, LARGEST, 2, dtype=torch.float64)
    assert torch.all(((found * odd) - (found * odd).round()).abs().amin(1) < 1e-9)


def test_a_row_shares_one_denominator():
    row = torch.tensor([[0.6667, 1.4285]], dtype=torch.float64)
    assert (near_fractions(row)[0] * 21).tolist() == pytest.approx([14, 30])
    assert [float(near_fractions(row[:, i : i + 1])) for i in (0, 1)] == pytest.approx([2 / 3, 10 / 7])


def test_what_is_too_small_for_a_fraction_stays():
    steps = torch.tensor([[1.37e-5], [0.25]], dtype=torch.float64)
    found = near_fractions(steps)
    assert found[0] == steps[0] and found[1] != steps[1], "four is no odd denominator"


@pytest.mark.parametrize("preset", ["w8a8", "w4a4", pytest.param("w8a8-tensor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", EVERY)
def test_float64_stores_the_same_integers(name, preset):
    _, (student, _), inputs = students(name, preset)
    assert other_integers(student, inputs) == 0


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
@pytest.mark.parametrize("name", ["residual", "residual with projection", "depthwise inverted residual"])
def test_float64_stores_the_same_integers_of_sums_that_a_layer_is_computed_with(name, target):
    _, (student, _), inputs = students(name, "w8a8", target)
    assert other_integers(student, inputs) == 0


def test_without_moved_scales_some_integers_are_others():
    """x = k (1 + e), w = 1 - e, output scale 2, e = 2^-13: x w = k - k e^2 is nearer to k than to any other float32.

    So float32 rounds k / 2, for odd k a tie, to the even neighbour; float64, where it is less, always to the lower one.
    """
    e, zero = 2.0**-13, torch.zeros(1, dtype=torch.int32)
    model, inputs = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), torch.arange(256.0)[:, None] * (1 + e)
    teacher = trace(model, inputs)
    plan = plan_layers(teacher, Recipe.preset("w8a8"))
    scales = zip(plan.activation_bits, (1 + e, 2.0), strict=True)
    grids = {(name, 8): QParams(torch.tensor([scale]), zero, 0, 255) for name, scale in scales}
    w, bias = QParams(torch.tensor([1 - e]), zero, -127, 127), torch.zeros(1)
    results = {name: LayerResult(name, torch.ones(1, 1), w, bias, 0.0, 8, "by hand", 0.0) for name in plan.layers}
    solution = Solution(teacher, plan, results, grids)
    before, (student, _) = assemble(solution), snap_scales(solution)
    assert other_integers(before, (inputs,)) == 64, "k = 3, 7, ... 255"
    assert other_integers(student, (inputs,)) == 0


def test_a_layer_that_is_rounded_twice_is_moved_once():
    assert other_integers(students("readers", "w8a8")[1][0], students("readers", "w8a8")[2]) == 0
    (_, old), (_, new), _ = students("readers", "w4a4")
    change = (new["first"].weight_qparams.scale / old["first"].weight_qparams.scale - 1).abs().max()
    assert 0 < change <= 3 * TOLERANCE


@pytest.mark.parametrize("name", EVERY)
def test_integers_stay_and_scales_hardly_move(name):
    (before, old), (student, new), inputs = students(name, "w8a8")
    moves = [(r.weight_qparams.scale / old[n].weight_qparams.scale - 1).abs().max() for n, r in new.items()]
    moves += [abs(a / b - 1) for a, b in zip(grids_of(before), grids_of(student), strict=True)]
    assert 0 < max(moves) < 3 * TOLERANCE, "its own, and those of the grids before and behind it"
    assert all(torch.equal(r.weight, old[n].weight) and torch.equal(r.bias, old[n].bias) for n, r in new.items())
    with torch.no_grad():
        a, b = (
            torch.cat([v.flatten() for v in torch.utils._pytree.tree_leaves(s(*inputs))]) for s in (before, student)
        )
    assert (a - b).square().mean() < 1e-3 * a.var()


@pytest.mark.parametrize("preset", ["w8a8", "w8a8-tensor"])
def test_other_constants_are_left_alone(preset):
    _, (student, layers), inputs = students("constants", preset)
    with torch.no_grad():
        assert bool(torch.isfinite(student(*inputs)).all())
    assert all(bool(torch.isfinite(r.weight_qparams.scale).all()) for r in layers.values())


def test_a_float_student_is_left_alone():
    model, inputs = NETS["chain"]()
    recipe = Recipe(weights={"bits": None}, activations={"bits": None}, prune={"sparsity": 0.3}).updated(CHEAP)
    run = compress(model, recipe, inputs)
    assert not any(n.target is QUANTIZE for n in run.student.graph.nodes) and run.summary.sparsity > 0.2
