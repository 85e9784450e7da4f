"""Zeros between layers: the sum is exact, the shares are best; and pruning as a whole, from recipe to student."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from datafree import Recipe, compress
from datafree import graph as g
from datafree.allocation.sparsity import (
    ErrorCurve,
    Probe,
    allocate_by_slope,
    at_output,
    convex,
    curve_of_zeros,
    share_zeros,
)
from datafree.execution.pools import processes, serial
from datafree.graph.capture import trace
from datafree.quantization.sparsity import in_cells
from datafree.recipe import Gptq, Nearest
from datafree.signals import make_signal
from datafree.solve.plan import plan_layers
from datafree.solve.problem import Problem
from datafree.solve.weight_grids import output_power
from datafree.teacher.batchnorm import fold_batchnorm_
from jobs import make_job
from nets import NETS, block, compressed, conv, head
from test_pipeline import same

FLOAT = {"weights": {"bits": None}, "activations": {"bits": None}, "signal": {"images": 4}}
SCORES = pytest.mark.parametrize("score", ["output", "magnitude"])


def recipe(sparsity=0.6, **fields):
    """Float but for zeros, on four images; `prune` holds what differs there."""
    prune = {"sparsity": sparsity, **fields.pop("prune", {})}
    return Recipe(**{**FLOAT, "prune": prune if sparsity is not None else fields.pop("pattern"), **fields})


def run_of(name, **fields):
    return compressed(name, recipe(**fields).dump())


def zeros(run):
    return {r.name: int((r.weight == 0).sum()) for r in run.layers}


def sizes(run):
    return {r.name: r.weight.numel() for r in run.layers}


def output_error(run):
    """Of the student on noise, as a share of the variance of the teacher's output."""
    x = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, wanted = run.student(x), run.teacher(x)
    return float((found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


# Numbers


def random_curve(generator, steps):
    """A convex curve from (0, 0) on, with pieces of 1 to 4 weights."""
    widths = torch.randint(1, 5, (steps,), generator=generator).tolist()
    slopes = torch.rand(steps, generator=generator).sort().values.tolist()
    x = list(itertools.accumulate(widths, initial=0))
    y = list(itertools.accumulate((w * s for w, s in zip(widths, slopes, strict=True)), initial=0.0))
    return tuple(zip(x, y, strict=True))


def error_at(curve, count):
    """Linear between points."""
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if x0 <= count <= x1:
            return y0 + (y1 - y0) * (count - x0) / (x1 - x0)
    return math.inf


@pytest.mark.parametrize("seed", range(4))
def test_shares_are_the_best_of_all(seed):
    generator = torch.Generator().manual_seed(seed)
    curves = {name: random_curve(generator, 3) for name in "abc"}
    most = [curve[-1][0] for curve in curves.values()]
    for total in (0, 1, sum(most) // 2, sum(most) - 1, sum(most)):
        counts = allocate_by_slope(curves, total)
        assert list(counts) == list(curves) and sum(counts.values()) == total
        found = sum(error_at(curves[name], n) for name, n in counts.items())
        every = (n for n in itertools.product(*(range(m + 1) for m in most)) if sum(n) == total)
        best = min(sum(error_at(c, n) for c, n in zip(curves.values(), counts, strict=True)) for counts in every)
        assert found == pytest.approx(best, abs=1e-12)


def test_a_layer_that_costs_nothing_goes_first():
    curves = {"dear": ((0, 0.0), (10, 5.0)), "cheap": ((0, 0.0), (6, 0.1), (10, 9.0))}
    assert allocate_by_slope(curves, 8) == {"dear": 2, "cheap": 6}
    assert allocate_by_slope(curves, 17) == {"dear": 10, "cheap": 7}


@pytest.mark.parametrize("seed", range(5))
def test_the_hull_is_below_all_points_and_its_slopes_rise(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randperm(60, generator=generator)[:16].sort().values + 1
    points = [(0, 0.0), *zip(x.tolist(), torch.rand(16, generator=generator).tolist(), strict=True)]
    hull = convex(points[::-1])
    assert hull[0] == (0, 0.0) and hull[-1] == points[-1] and set(hull) <= set(points) and len(hull) < len(points)
    assert all(error_at(hull, px) <= py + 1e-12 for px, py in points)
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(hull)]
    assert slopes == sorted(set(slopes))


def test_what_is_convex_stays_as_it_is():
    points = [(0, 0.0), (2, 1.0), (4, 3.0), (5, 9.0)]
    assert convex(points) == tuple(points)
    assert convex([(0, 0.0), (3, 0.0), (5, 2.0)]) == ((0, 0.0), (3, 0.0), (5, 2.0))


def test_of_points_at_one_count_the_lowest_is_taken():
    """Two steps of a small layer may end at one count, with errors that differ in the last digit."""
    hull = convex([(0, 0.0), (38, 1.0), (39, 2.0), (39, 2.0000001)])
    assert hull == ((0, 0.0), (38, 1.0), (39, 2.0))
    assert allocate_by_slope({"a": hull}, 39) == {"a": 39}


def test_a_larger_error_of_a_layer_never_costs_less_at_the_output():
    probes = tuple(Probe("a", error, torch.zeros(1), torch.zeros(1)) for error in (0.1, 0.5))
    found = list(at_output(ErrorCurve("a", ((0, 0.0), (10, 0.1), (20, 0.5), (30, 0.9)), probes), [1.0, 0.2]))
    assert [count for count, _ in found] == [0, 10, 20, 30]
    assert [error for _, error in found] == sorted(error for _, error in found)


def test_errors_are_read_between_probes_along_straight_lines():
    probes = tuple(Probe("a", error, torch.zeros(1), torch.zeros(1)) for error in (0.1, 0.5))
    points = ((0, 0.0), (4, 0.05), (10, 0.1), (15, 0.3), (20, 0.5), (30, 0.9))
    found = dict(at_output(ErrorCurve("a", points, probes), [0.2, 1.0]))
    assert found == pytest.approx({0: 0.0, 4: 0.1, 10: 0.2, 15: 0.6, 20: 1.0, 30: 1.8})


# One layer by itself


@pytest.mark.parametrize("method", [Gptq(), Nearest()], ids=lambda m: m.method)
def test_a_trial_goes_from_nothing_to_nearly_all(method):
    job = make_job(method, groups=2, taps=40)
    found = curve_of_zeros(job)
    assert found.name == job.name and found.points[0] == (0, 0.0)
    assert 0.95 * 480 < found.points[-1][0] < 480 and 0.3 < found.points[-1][1] < 1.5  # of the output's variance
    assert len(found.points) > 8 and all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(found.points))
    errors = dict(found.points)
    for probe in found.probes:
        assert errors[int((probe.weight == 0).sum())] == probe.error > 0
        assert probe.error == output_power(job.weight - probe.weight, job.moments) / output_power(
            job.weight, job.moments
        )
        expected = torch.einsum("gon,gn->go", job.weight - probe.weight, job.moments.mean).flatten()
        torch.testing.assert_close(probe.shift, expected)


def test_refit_trials_err_less():
    one, other = (convex(list(curve_of_zeros(make_job(m, taps=40, rows=8)).points)) for m in (Gptq(), Nearest()))
    assert all(error_at(one, n) < 0.7 * error_at(other, n) for n in (100, 160, 240))


def test_a_trial_is_the_same_anywhere():
    jobs = [make_job(Gptq(), rows=24, taps=200), make_job(Nearest(), rows=24, taps=200)]
    wanted = [curve_of_zeros(job) for job in jobs]
    torch.set_num_threads(3)
    found = [curve_of_zeros(job) for job in jobs]
    assert torch.get_num_threads() == 3
    assert [t.points for t in found] == [t.points for t in wanted]
    assert same([[p.weight for p in t.probes] for t in found], [[p.weight for p in t.probes] for t in wanted])


@pytest.mark.parametrize("taps", [2, 9, 30])
def test_of_a_small_layer_something_is_left(taps):
    points = curve_of_zeros(make_job(Gptq(), rows=1, taps=taps)).points
    assert points[-1][0] < taps and len(set(points)) > min(taps, 4) - 1


# Between layers


@functools.cache
def folded(name):
    teacher = trace(*NETS[name]())
    return teacher, fold_batchnorm_(teacher)[0]


def planned(name, chosen):
    """The plan of a net before and after zeros are moved."""
    teacher, stats = folded(name)
    plan, signal = plan_layers(teacher, chosen), make_signal(teacher, stats, chosen.signal, seed=0)
    return plan, share_zeros(Problem(teacher, plan, signal, chosen.solve), chosen.prune, serial)


def counts(plan):
    return {n: i.weights.prune.count for n, i in plan.layers.items() if i.weights and i.weights.prune}


NAMES = [
    "residual", "shared module", "dead channels", *(pytest.param(n, marks=pytest.mark.slow) for n in (
        "grouped", "two inputs", "dict output", "squeeze and excitation")),
]  # fmt: skip


@SCORES
@pytest.mark.parametrize("name", NAMES)
def test_zeros_move_and_their_sum_stays(name, score):
    before, after = planned(name, recipe(0.6, prune={"score": score}))
    assert sum(counts(after).values()) == sum(counts(before).values()) and counts(after) != counts(before)
    for layer, item in after.layers.items():
        assert replace(item, weights=before.layers[layer].weights) == before.layers[layer]
        prune = before.layers[layer].weights.prune
        assert item.weights.prune == replace(prune, count=item.weights.prune.count)


@pytest.mark.parametrize(
    "score, sparsity",
    [
        ("output", 0.02),
        ("output", 0.995),
        ("magnitude", 0.995),
        pytest.param("output", 0.97, marks=pytest.mark.slow),
        pytest.param("magnitude", 0.02, marks=pytest.mark.slow),
    ],
)
def test_the_sum_is_exact_at_any_sparsity(score, sparsity):
    before, after = planned("residual", recipe(sparsity, prune={"score": score}))
    assert sum(counts(after).values()) == sum(counts(before).values())


@pytest.mark.parametrize("method", ["nearest", "squant", "straight_through"])
def test_every_method_shares_out(method):
    before, after = planned("chain", recipe(solve={"method": method}))
    assert sum(counts(after).values()) == sum(counts(before).values()) and counts(after) != counts(before)


def test_sequence_and_gaussian_draws_share_out():
    before, after = planned("chain", recipe(solve={"sequential": True}))
    assert sum(counts(after).values()) == sum(counts(before).values()) and counts(after) != counts(before)
    drawn = planned("chain", recipe(signal={"kind": "gaussian", "images": 4}))[1]
    assert sum(counts(drawn).values()) == sum(counts(before).values())


def test_layers_of_scope_layer_keep_their_share():
    before, after = planned("residual", recipe(prune={"scope": "layer"}))
    assert after is before
    teacher, _ = folded("residual")
    weights = {name: g.weight(teacher, layer) for name, layer in g.layers(teacher).items()}
    assert counts(after) == {name: round(0.6 * w.numel()) for name, w in weights.items()}


def test_by_magnitude_layers_share_one_threshold():
    run = run_of("residual", prune={"score": "magnitude"}, solve={"method": "nearest"}, equalize="off")
    assert sum(zeros(run).values()) == sum(round(0.6 * n) for n in sizes(run).values())
    teacher = {n: g.weight(run.teacher, layer).flatten() for n, layer in g.layers(run.teacher).items()}
    gone = torch.cat([teacher[r.name][r.weight.flatten() == 0].abs() for r in run.layers])
    stay = torch.cat([teacher[r.name][r.weight.flatten() != 0].abs() for r in run.layers])
    assert gone.max() <= stay.min() and len(set(zeros(run).values())) > 1


def test_a_rule_is_obeyed_and_left_out_of_the_moving():
    """0.2 of the second layer, whatever its zeros would do elsewhere."""
    run = run_of("residual", layers={"1.0.conv": {"prune": {"sparsity": 0.2}}, "3.*": "keep"})
    assert zeros(run)["1.0.conv"] == round(0.2 * sizes(run)["1.0.conv"])
    assert not {"3.0.conv", "3.1.conv"} & zeros(run).keys()
    others = [name for name in sizes(run) if name != "1.0.conv"]
    assert sum(zeros(run)[n] for n in others) == sum(round(0.6 * sizes(run)[n]) for n in others)
    assert any(zeros(run)[n] != round(0.6 * sizes(run)[n]) for n in others)
    for name in ("3.0.conv", "3.1.conv"):
        layer = g.layers(run.teacher)[name]
        assert torch.equal(g.weight(run.student, layer), g.weight(run.teacher, layer))
    assert {s.name for s in run.summary.skipped} == {"3.0.conv", "3.1.conv"}


def test_a_rule_may_ask_for_zeros_where_the_recipe_asks_for_none():
    run = run_of("chain", sparsity=0.0, layers={"1.conv": {"prune": {"sparsity": 0.5}}})
    assert zeros(run) == {"1.conv": 288} and run.summary.num_quantized == 1


class OneFaint(nn.Module):
    """Two branches of one shape; the output hardly hears the second."""

    def __init__(self):
        super().__init__()
        self.stem, self.loud, self.faint, self.head = block(3, 8), block(8, 8), block(8, 8), head(8)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.loud(x) + 0.02 * self.faint(x))


@pytest.mark.parametrize("score", ["output", pytest.param("magnitude", marks=pytest.mark.slow)])
def test_zeros_go_where_they_do_least_harm(score):
    torch.manual_seed(0)
    model, x = OneFaint().eval(), torch.randn(32, 3, 12, 12)
    runs = {
        scope: compress(model, recipe(0.5, prune={"scope": scope, "score": score}, equalize="off"), x)
        for scope in ("layer", "global")
    }
    assert [sum(zeros(run).values()) for run in runs.values()] == [sum(zeros(runs["layer"]).values())] * 2
    if score == "output":
        assert zeros(runs["global"])["faint.conv"] > 0.9 * 576 > 0.6 * 576 > zeros(runs["global"])["loud.conv"]
        assert output_error(runs["global"]) < 0.5 * output_error(runs["layer"])


# From recipe to student


def test_a_pruned_student_is_near_its_teacher_and_nearer_with_fewer_zeros():
    model, (x,) = NETS["chain"]()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    errors = []
    for sparsity in (0.1, 0.4, 0.8):
        run = run_of("chain", sparsity=sparsity)
        asked = sum(round(sparsity * n) for n in sizes(run).values())
        assert sum(zeros(run).values()) == asked
        assert {r.name: r.sparsity for r in run.layers} == pytest.approx(
            {n: z / sizes(run)[n] for n, z in zeros(run).items()}
        )
        assert run.summary.sparsity == pytest.approx(asked / sum(sizes(run).values()))
        assert all(r.weight_qparams is None and r.bits == 32 for r in run.layers)
        for r in run.layers:
            stored = g.weight(run.student, g.layers(run.student)[r.name])
            assert torch.equal(stored.flatten(), r.weight.flatten())
        errors.append(output_error(run))
    assert errors[0] < 0.01 and errors[0] < 0.2 * errors[1] < 0.2 * errors[2]
    assert same(dict(model.state_dict()), before)
    with torch.no_grad():
        torch.testing.assert_close(run_of("chain", sparsity=0.8).teacher(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow  # of one layer, test_refit_trials_err_less
def test_gptq_students_are_nearer_than_masked_ones():
    errors = [output_error(run_of("residual", sparsity=0.5, solve={"method": m})) for m in ("gptq", "nearest")]
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize("sequential", [False, True], ids=["independent", "sequential"])
def test_an_nm_student_has_its_pattern(sequential):
    model, inputs = NETS["chain"]()
    chosen = Recipe(signal={"images": 4}, prune={"pattern": "2:4"}, solve={"sequential": sequential})
    run = compress(model, chosen, inputs)
    stays = {r.name: (r.weight != r.weight_qparams.zero_point[:, None]).int() for r in run.layers}
    assert int(in_cells(stays["1.conv"][None], (2, 4, 9)).sum(3).max()) == 2
    assert int(in_cells(stays["2.2"][None], (2, 4, 1)).sum(3).max()) == 2
    assert stays["0.conv"].double().mean() > 0.8, "its three input channels make no cell of four"
    assert [s.name for s in run.summary.skipped] == ["0.conv"]
    assert output_error(run) < 0.8 * output_error(compress(model, chosen.updated(["solve.method=nearest"]), inputs))


def everything(run):
    results = {r.name: (r.weight, r.bias, r.error_db, r.sparsity) for r in run.layers}
    return results, dict(run.student.state_dict())


@pytest.mark.slow
def test_processes_give_the_same_bits_as_serial():
    model, inputs = NETS["chain"]()
    chosen = recipe(weights={"bits": 4})
    runs = [compress(model, chosen, inputs, pool=pool) for pool in (serial, processes(2))]
    assert same(*(everything(run) for run in runs)) and sum(zeros(runs[0]).values()) > 0


def test_bytes_of_sparse_layers_by_hand():
    """A bit for every weight and what is left, where that is less than all of them."""
    chosen = {"0.conv": {"prune": {"sparsity": 0.01}}, "1.conv": {"prune": {"sparsity": 0.75}}}
    run = run_of("chain", sparsity=0.0, layers=chosen)
    biases, last = 4 * (8 + 8 + 5), 4 * 40  # the last layer is dense
    assert zeros(run) == {"0.conv": 2, "1.conv": 432}
    first = 4 * 216  # dense: 27 + 4 * 214 would be more
    assert run.summary.bytes == biases + last + first + (72 + 4 * 144)
    assert run.summary.float_bytes == biases + 4 * (216 + 576 + 40)
    joint = run_of("chain", sparsity=0.0, layers=chosen, weights={"bits": 4}, first_last="same")
    kept = {r.name: int((r.weight != r.weight_qparams.zero_point[:, None]).sum()) for r in joint.layers}
    assert kept["1.conv"] <= 144
    expected = sum(
        min(size // 2, math.ceil(size / 8) + math.ceil(kept[name] / 2))
        for name, size in {"0.conv": 216, "1.conv": 576, "2.2": 40}.items()
    )
    assert joint.summary.bytes == biases + expected + 4 * (8 + 8 + 5)


def test_a_layer_that_cannot_be_factored_is_named():
    model, inputs = NETS["dead channels"]()
    with pytest.raises(ValueError, match=r"^[\w.]+: gptq failed on weight \(1, 8, 72\)"):
        compress(model, recipe(solve={"damping": 1e-300}, slim="off"), inputs)


def test_one_layer_of_one_kind_is_all_there_is():
    torch.manual_seed(0)
    model, x = nn.Sequential(conv(3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(), torch.randn(4, 3, 8, 8)
    assert zeros(compress(model, recipe(0.5), x)) == {"0": 54}
