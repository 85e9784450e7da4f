"""One layer's problem: `gptq` against GPTQ as published, who beats whom, `compress_layer` anywhere."""

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from datafree import Recipe, inspect
from datafree.execution.pools import processes, serial
from datafree.quantization.affine import choose_qparams, dequantize
from datafree.recipe import AdaRound, Gptq, Nearest, RecipeError, RoundingRecipe, SQuant, StraightThrough
from datafree.records import QParams, WeightSpec
from datafree.solve.compensation import compensated
from datafree.solve.rounding import ROUNDING, RoundingMethod
from datafree.solve.rounding.adaround import adaround
from datafree.solve.rounding.gptq import gptq, polished
from datafree.solve.rounding.nearest import nearest
from datafree.solve.rounding.squant import squant
from datafree.solve.rounding.straight_through import straight_through
from datafree.solve.solve_layer import LayerError, compress_layer
from datafree.solve.weight_grids import FACTORS, output_power, solve_on_best_grid, weight_grid
from jobs import (
    ADAROUND,
    METHODS,
    SGD,
    SPECS,
    assert_same_results,
    block_diagonal,
    in_blocks,
    make_job,
    with_covariance,
)
from nets import NETS


def equicorrelated(taps, rho, groups=1):
    return (rho * torch.ones(taps, taps) + (1 - rho) * torch.eye(taps)).repeat(groups, 1, 1)


def real_values(q, qparams, job):
    return dequantize(q.flatten(0, 1), qparams).view_as(job.weight)


def output_error(job, solver, qparams):
    """Error of the layer's output, W H W^T, for the integers of a solver."""
    return output_power(job.weight - real_values(solver(job, qparams), qparams, job), job.moments)


def plain_gptq(weight, h, scale, zero_point, qmin, qmax, damping):
    """GPTQ (arXiv 2210.17323, algorithm 1, activation order) on one group, in float64: integers (o, n)."""
    n = len(h)
    h = h + damping * h.diagonal().mean() * np.eye(n)
    order = np.argsort(-h.diagonal())
    upper = np.linalg.cholesky(np.linalg.inv(h[np.ix_(order, order)])).T  # H^-1 = U^T U
    w, q = weight[:, order].copy(), np.zeros_like(weight)
    for k in range(n):
        q[:, k] = np.clip(np.round(w[:, k] / scale) + zero_point, qmin, qmax)
        error = (w[:, k] - (q[:, k] - zero_point) * scale) / upper[k, k]
        w[:, k + 1 :] -= np.outer(error, upper[k, k + 1 :])
    return q[:, np.argsort(order)]


def plain_squant(weight, scale, zero_point, qmin, qmax, kernel_size):
    """SQuant (arXiv 2202.07471, section 3.3) on one output channel (n,), element after element: integers (n,)."""
    exact = [w / scale + zero_point for w in weight]
    q = [min(max(round(x), qmin), qmax) for x in exact]

    def flip(elements):
        """Flip among `elements`; return the one to flip next, or to take back, when the channel asks for it."""
        total = sum(q[i] - exact[i] for i in elements)
        step = -1 if total > 0 else 1
        same = [i for i in elements if (q[i] - exact[i]) * step < 0 and qmin <= q[i] + step <= qmax]
        same.sort(key=lambda i: abs(q[i] - exact[i]), reverse=True)
        count = min(round(abs(total)), len(same))
        for i in same[:count]:
            q[i] += step
        next_one = count - 1 if count and count >= abs(total) else count
        return same[next_one : next_one + 1], step

    candidates = []
    for start in range(0, len(q), kernel_size):
        candidates += flip(range(start, start + kernel_size))[0]
    total = sum(a - b for a, b in zip(q, exact, strict=True))
    step = -1 if total > 0 else 1
    candidates = [i for i in candidates if (q[i] - exact[i]) * step < 0]
    candidates.sort(key=lambda i: abs(q[i] - exact[i]), reverse=True)
    for i in candidates[: round(abs(total))]:
        q[i] += step
    return q


# Solvers


def test_every_method_of_the_recipe_has_a_solver():
    assert set(RoundingRecipe.kinds.values()) == set(ROUNDING)


def test_a_row_that_refits_without_h_is_refused():
    with pytest.raises(ValueError, match="refit_damping is of least squares, which need H; say moments='covariance'"):
        RoundingMethod(nearest, refit_damping=lambda recipe: 0.01)


def test_a_method_without_a_row_is_refused_before_any_work():
    recipe = Recipe().model_copy(update={"solve": RoundingRecipe(method="x")})
    with pytest.raises(RecipeError, match=r"solve.method 'x' has no row; add ROUNDING\[RoundingRecipe\] = RoundingM"):
        inspect(*NETS["chain"](), recipe=recipe)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("seed, groups, rows, taps", [(0, 1, 6, 20), (1, 3, 4, 9), (2, 2, 3, 150), (3, 5, 1, 4)])
def test_without_polish_it_is_gptq_as_published(seed, groups, rows, taps, spec):
    job = make_job(Gptq(damping=0.02, polish=0), seed=seed, spec=spec, groups=groups, rows=rows, taps=taps)
    qparams = weight_grid(job)
    q = gptq(job, qparams).view(groups, rows, taps)
    per_row = torch.ones(groups * rows)
    scale = (qparams.scale * per_row).view(groups, rows).double().numpy()
    zero_point = (qparams.zero_point * per_row).view(groups, rows).numpy()
    for i in range(groups):
        w, h = job.weight[i].double().numpy(), job.moments.cov[i].double().numpy()
        expected = plain_gptq(w, h, scale[i], zero_point[i], qparams.qmin, qparams.qmax, 0.02)
        assert q[i].tolist() == expected.tolist()
    assert not torch.equal(q, nearest(job, qparams))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_without_correlation_gptq_is_nearest(bits):
    job = make_job(Gptq(), spec=WeightSpec(bits, True, False), groups=2, taps=80)
    job = with_covariance(job, torch.diag_embed(job.moments.variance))
    qparams = weight_grid(job)
    assert torch.equal(gptq(job, qparams), nearest(job, qparams))


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_gptq_beats_nearest_always_where_inputs_are_strongly_correlated(bits):
    for seed in range(6):
        for rho in (0.9, 0.99):
            job = make_job(Gptq(), seed=seed, spec=WeightSpec(bits, True, False), groups=2, taps=24)
            job = with_covariance(job, equicorrelated(24, rho, groups=2))
            qparams = weight_grid(job)
            assert output_error(job, gptq, qparams) < output_error(job, nearest, qparams)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("correlation", ["weak", "low rank"])
def test_gptq_beats_nearest_on_average(bits, correlation):
    decibels = []
    for seed in range(8):
        job = make_job(Gptq(), seed=seed, spec=WeightSpec(bits, True, False), taps=24)
        if correlation == "weak":
            job = with_covariance(job, equicorrelated(24, 0.3))
        qparams = weight_grid(job)
        ratio = output_error(job, nearest, qparams) / output_error(job, gptq, qparams)
        decibels.append(10 * math.log10(ratio))
    assert sum(decibels) / len(decibels) > {"weak": 0.3, "low rank": 3}[correlation]


@pytest.mark.parametrize("spec", [WeightSpec(3, True, False), WeightSpec(3, False, True)], ids=["channel", "tensor"])
@pytest.mark.parametrize("groups", [1, 3])
def test_sgd_lowers_the_error_on_its_rows(spec, groups):
    job = make_job(StraightThrough(steps=150, rows=64, lr=3e-3), spec=spec, groups=groups)
    qparams = weight_grid(job)

    def error(q):
        moved = torch.einsum("rgn,gon->rgo", job.rows, job.weight - real_values(q, qparams, job))
        return moved.var(0).sum().item()

    assert error(straight_through(job, qparams)) < 0.7 * error(nearest(job, qparams))


def held_out_error(q, qparams, job):
    """Error of each output channel on the quarter of the rows that sgd does not train on."""
    rows = job.rows[: len(job.rows) // 4]
    return torch.einsum("rgn,gon->rgo", rows, job.weight - real_values(q, qparams, job)).var(0, unbiased=False)


@pytest.mark.parametrize("lr", [1e-3, 10.0, 1e6])
@pytest.mark.parametrize("bits, groups, rows, taps", [(2, 1, 6, 20), (4, 3, 2, 9), (8, 5, 1, 4)])
def test_sgd_is_never_worse_than_its_start_on_rows_it_has_not_seen(lr, bits, groups, rows, taps):
    method = StraightThrough(steps=30, rows=32, lr=lr)
    for spec in (WeightSpec(bits, True, False), WeightSpec(bits, False, True)):
        job = make_job(method, spec=spec, groups=groups, rows=rows, taps=taps)
        qparams = weight_grid(job)
        after = held_out_error(straight_through(job, qparams), qparams, job)
        assert (after <= held_out_error(nearest(job, qparams), qparams, job) * (1 + 1e-5) + 1e-12).all()


def test_sgd_that_only_does_harm_returns_its_start():
    job = make_job(StraightThrough(steps=30, rows=32, lr=1e6))
    qparams = weight_grid(job)
    assert torch.equal(straight_through(job, qparams), nearest(job, qparams))


@pytest.mark.parametrize("num_rows", [1, 3, 100, 127])
def test_sgd_with_too_few_rows_to_hold_any_out_measures_on_all_of_them(num_rows):
    job = make_job(StraightThrough(steps=60, rows=64, lr=3e-3))
    job = replace(job, rows=job.rows[:num_rows])
    qparams = weight_grid(job)

    def error(q):
        moved = torch.einsum("rgn,gon->rgo", job.rows, job.weight - real_values(q, qparams, job))
        return moved.var(0, unbiased=False)

    assert (error(straight_through(job, qparams)) <= error(nearest(job, qparams)) * (1 + 1e-5)).all()


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
@pytest.mark.parametrize(
    "groups, rows, channels, kernel_size",
    [(1, 6, 5, 9), (3, 4, 2, 25), (6, 1, 1, 9), (1, 8, 30, 1), (2, 3, 4, 2)],
    ids=["convolution", "grouped", "depthwise", "linear", "two taps"],
)
def test_squant_equals_the_paper(groups, rows, channels, kernel_size, seed, spec):
    job = make_job(SQuant(), seed=seed, spec=spec, groups=groups, rows=rows, taps=channels * kernel_size)
    job = replace(job, kernel_size=kernel_size)
    qparams = weight_grid(job)
    found = squant(job, qparams).flatten(0, 1)
    scale = qparams.scale.double().expand(groups * rows).tolist()
    zero_point = qparams.zero_point.expand(groups * rows).tolist()
    for row, w in enumerate(job.weight.flatten(0, 1).double().tolist()):
        expected = plain_squant(w, scale[row], zero_point[row], qparams.qmin, qparams.qmax, kernel_size)
        assert found[row].tolist() == expected


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("channels, kernel_size", [(1, 9), (12, 9), (64, 1), (5, 25)])
def test_squant_brings_sums_of_errors_within_half_a_step(bits, channels, kernel_size):
    job = make_job(SQuant(), spec=WeightSpec(bits, True, True), groups=2, taps=channels * kernel_size)
    job = replace(job, kernel_size=kernel_size)
    limits = job.weight.flatten(0, 1).abs().amax(1)
    qparams = choose_qparams(-limits, limits, bits=bits, symmetric=True)  # nothing is clipped
    exact = job.weight.flatten(0, 1).double() / qparams.scale[:, None]
    error = squant(job, qparams).flatten(0, 1) - exact
    start = nearest(job, qparams).flatten(0, 1) - exact
    assert error.abs().max() < 1  # one of the two neighbours
    assert error.sum(1).abs().max() <= 0.5 + 1e-6
    kernels = error.unflatten(1, (channels, kernel_size)).sum(2).abs()
    assert kernels.max() <= 1 + 1e-6  # SQuant-C relaxes what SQuant-K reached, by one flip at most
    assert channels == 1 or start.sum(1).abs().max() > 0.5


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_squant_beats_nearest_where_inputs_are_what_the_paper_assumes(bits):
    for seed in range(4):
        job = make_job(SQuant(), seed=seed, spec=WeightSpec(bits, True, False), groups=2, taps=36)
        job = replace(with_covariance(job, equicorrelated(36, 0.9, groups=2)), kernel_size=9)
        qparams = weight_grid(job)
        assert output_error(job, squant, qparams) < output_error(job, nearest, qparams)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("groups, rows, taps", [(1, 6, 20), (3, 4, 9), (5, 1, 4)], ids=["all", "grouped", "depthwise"])
@pytest.mark.parametrize("steps", [pytest.param(1, marks=pytest.mark.slow), 100])
def test_adaround_is_never_worse_than_nearest_in_any_channel(groups, rows, taps, spec, steps):
    job = make_job(AdaRound(steps=steps), spec=spec, groups=groups, rows=rows, taps=taps)
    qparams = weight_grid(job)
    first, second = nearest(job, qparams), adaround(job, qparams)
    start, end = (job.weight - real_values(q, qparams, job) for q in (first, second))
    form = lambda d: torch.einsum("gon,gnm,gom->go", d, job.moments.cov, d)  # noqa: E731
    assert (form(end) <= form(start) * (1 + 1e-4)).all()
    assert (second - first).abs().max() <= 1
    assert steps == 1 or taps < 20 or not torch.equal(first, second)


@pytest.mark.parametrize("bits, decibels", [(2, 4), (4, 4), (8, 4)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_adaround_beats_nearest_at_any_width_and_size_of_its_inputs(bits, decibels, scale):
    job = make_job(AdaRound(steps=200), spec=WeightSpec(bits, True, False), taps=24)
    job = with_covariance(job, job.moments.cov * scale)
    qparams = weight_grid(job)
    assert output_error(job, nearest, qparams) > 10 ** (decibels / 10) * output_error(job, adaround, qparams)


def test_adaround_comes_near_the_best_of_all_roundings_up_or_down():
    job = make_job(AdaRound(steps=200), spec=WeightSpec(4, True, True), groups=20, rows=1, taps=6)
    limits = job.weight[:, 0].abs().amax(1)
    qparams = choose_qparams(-limits, limits, bits=4, symmetric=True)
    scale = qparams.scale[:, None, None]
    up = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 6)  # (64, 6)
    moved = job.weight - ((job.weight / scale).floor() + up) * scale  # (20, 64, 6)
    best = torch.einsum("gan,gnm,gam->ga", moved, job.moments.cov, moved).amin(1)
    decibels = {}
    for solver in (nearest, adaround):
        moved = (job.weight - real_values(solver(job, qparams), qparams, job))[:, 0]
        error = torch.einsum("gn,gnm,gm->g", moved, job.moments.cov, moved)
        assert (error >= best * (1 - 1e-3)).all()
        decibels[solver] = 10 * (error / best).log10().mean()
    assert decibels[adaround] < 2 and decibels[adaround] < 0.6 * decibels[nearest]


@pytest.mark.parametrize("method", [AdaRound(steps=5), SQuant()], ids=lambda m: m.method)
def test_weights_on_the_grid_stay_where_they_are(method):
    job = make_job(method, spec=WeightSpec(4, True, True))
    job = replace(job, weight=torch.randint(-7, 8, job.weight.shape).float() / 8)
    qparams = QParams(torch.full((6,), 1 / 8), torch.zeros(6, dtype=torch.int32), -7, 7)
    assert torch.equal(ROUNDING[type(method)].round(job, qparams), job.weight * 8)


def test_sgd_without_rows_is_our_own_mistake():
    job = replace(make_job(SGD), rows=None)
    with pytest.raises(AssertionError, match="straight_through needs drawn inputs"):
        compress_layer(job)


# compress_layer


@METHODS
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("groups", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_result_is_on_its_grid_and_keeps_the_mean_output(method, spec, groups):
    job = make_job(method, spec=spec, groups=groups)
    result = compress_layer(job)
    qparams = result.weight_qparams
    assert (result.name, result.bits, result.method) == ("block.conv", spec.bits, method.method)
    assert result.weight.dtype == torch.int16 and result.weight.shape == (groups * 6, 20)
    assert result.weight.min() >= qparams.qmin and result.weight.max() <= qparams.qmax
    assert qparams.bits == spec.bits and len(qparams.scale) == (groups * 6 if spec.per_channel else 1)
    assert not spec.symmetric or not qparams.zero_point.any()
    new = dequantize(result.weight.double(), qparams).view_as(job.weight)
    before = torch.einsum("gon,gn->go", job.weight.double(), job.moments.mean.double()).flatten() + job.bias
    after = torch.einsum("gon,gn->go", new, job.moments.student_mean.double()).flatten() + result.bias
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    assert (result.bias - job.bias).abs().max() > 1e-3


@METHODS
def test_error_db_is_the_output_error_and_falls_with_fewer_bits(method):
    found = []
    for bits in range(2, 9):
        job = make_job(method, spec=WeightSpec(bits, True, False), groups=2)
        result = compress_layer(job)
        h = job.moments.cov.double()
        h = torch.diag_embed(h) if h.dim() == 2 else h
        w = job.weight.double()
        moved = w - dequantize(result.weight.double(), result.weight_qparams).view_as(w)
        power, error = (torch.einsum("gon,gnm,gom->", x, h, x).item() for x in (w, moved))
        assert result.error_db == pytest.approx(10 * math.log10(power / error), abs=1e-3)
        found.append(result.error_db)
    assert found == sorted(found) and found[-1] > found[0] + 20


def test_weights_without_error_have_infinite_decibels():
    job = make_job(Nearest())
    assert compress_layer(replace(job, weight=torch.zeros_like(job.weight))).error_db == math.inf


def test_nearest_takes_its_two_options():
    job = make_job(Nearest(bias_correction=False, clip=False))
    result = compress_layer(job)
    assert torch.equal(result.bias, job.bias)
    rows = job.weight[0]
    expected = choose_qparams(rows.amin(1), rows.amax(1), bits=4, symmetric=False)
    assert torch.equal(result.weight_qparams.scale, expected.scale)
    clipped = compress_layer(make_job(Nearest()))
    assert (clipped.weight_qparams.scale < expected.scale).any()
    assert clipped.error_db > result.error_db


@pytest.mark.parametrize("spec", [SPECS["channel"], SPECS["tensor"]], ids=["channel", "tensor"])
def test_scale_is_widened_until_the_bias_fits_32_bits(spec):
    job = make_job(Gptq(), spec=spec)
    bias = job.bias.clone()
    bias[2] = 1e5
    input_scale = 1e-5
    result = compress_layer(replace(job, bias=bias, input_scale=input_scale))
    integers = result.bias.double() / (result.weight_qparams.scale.double() * input_scale)
    assert integers.abs().max() < 2**31
    free = compress_layer(replace(job, bias=bias)).weight_qparams.scale.expand(6)
    assert (free.double() * input_scale * 2**31)[2] < 1e5  # it would not have fitted
    if spec.per_channel:  # the other rows are left alone
        assert torch.equal(result.weight_qparams.scale[3:], free[3:])


@METHODS
def test_job_is_only_read(method):
    job = make_job(method)
    before = pickle.dumps(job)
    compress_layer(job)
    assert pickle.dumps(job) == before


@METHODS
def test_result_is_plain_data(method):
    result = compress_layer(make_job(method))
    for value in (result.weight, result.bias, result.weight_qparams.scale, result.weight_qparams.zero_point):
        assert not value.requires_grad
    assert_same_results([pickle.loads(pickle.dumps(result))], [result])
    assert result.seconds > 0 and result.sparsity == 0


def placement_jobs():
    """One of each method, large enough for threads to change the order of sums."""
    sizes = [
        (Gptq(), 1, 24, 200),
        (SGD, 3, 24, 60),
        (Nearest(), 1, 200, 200),
        (ADAROUND, 1, 24, 200),
        (SQuant(), 3, 24, 60),
    ]
    return [
        replace(make_job(method, groups=groups, rows=rows, taps=taps), name=method.method)
        for method, groups, rows, taps in sizes
    ]


@pytest.mark.parametrize("pool", [serial, pytest.param(processes(2), marks=pytest.mark.slow)], ids=["serial", "two"])
def test_placement_changes_no_bit(pool):
    jobs = placement_jobs()
    results = [compress_layer(job) for job in jobs]
    assert_same_results(results, [*pool(compress_layer, reversed(jobs))][::-1])


def test_threads_are_left_as_found_and_change_no_bit():
    jobs = placement_jobs()
    results = [compress_layer(job) for job in jobs]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert_same_results(results, [compress_layer(job) for job in jobs])
        assert torch.get_num_threads() == 3
        with pytest.raises(LayerError):
            compress_layer(with_covariance(jobs[0], -torch.eye(200)[None]))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


# Errors


def test_solver_that_fails_names_layer_method_and_shapes():
    job = make_job(Gptq(), groups=2)
    with pytest.raises(LayerError) as caught:
        compress_layer(with_covariance(job, -torch.eye(20).repeat(2, 1, 1)))
    assert str(caught.value).startswith(
        "block.conv: gptq failed on weight (2, 6, 20) (groups, rows, taps), 400 input rows: "
    )
    assert "not positive-definite" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # it crosses processes whole


@METHODS
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(method, value):
    job = make_job(method)
    weight = job.weight.clone()
    weight[0, 1, 2] = value
    with pytest.raises(LayerError, match=r"block\.conv: .*not finite"):
        compress_layer(replace(job, weight=weight))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("groups", [1, 3])
def test_polish_never_raises_a_row_s_error_and_lowers_some(groups, spec):
    moved = False
    for seed in range(4):
        job = make_job(Gptq(polish=0), seed=seed, groups=groups, spec=spec)
        qparams = weight_grid(job)
        before = gptq(job, qparams)
        after = polished(before, replace(job, method=Gptq(polish=2)), qparams)
        errors = [row_errors(job, q, qparams) for q in (before, after)]
        assert bool((errors[1] <= errors[0] * (1 + 1e-9) + 1e-12).all())
        assert after.min() >= qparams.qmin and after.max() <= qparams.qmax and torch.equal(after, after.round())
        assert torch.equal(polished(before, job, qparams), before)
        moved |= not torch.equal(before, after)
    assert moved or spec.bits == 8


def row_errors(job, q, qparams):
    off = (job.weight - dequantize(q.flatten(0, 1), qparams).view_as(q)).double()
    return ((off @ job.moments.cov.double()) * off).sum(2)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("groups", [1, 3])
def test_best_grid_is_the_best_of_those_tried_one_by_one(groups, spec):
    job = make_job(Gptq(polish=0), groups=groups, spec=spec)
    q, qparams = solve_on_best_grid(job)
    first = weight_grid(job)
    errors = []
    for factor in FACTORS:
        trial = replace(first, scale=first.scale * factor)
        errors.append(row_errors(job, gptq(job, trial), trial))
    tried = torch.stack(errors)
    wanted = tried.amin(0) if spec.per_channel else tried.sum((1, 2)).amin()
    found = row_errors(job, q, qparams)
    assert torch.allclose(found if spec.per_channel else found.sum(), wanted, rtol=1e-4)
    assert qparams.scale.shape == first.scale.shape == qparams.zero_point.shape
    if spec.bits < 8 and spec.per_channel:
        assert not torch.equal(qparams.scale, first.scale), "the first grid was the best for every row"


def test_methods_that_train_are_solved_on_one_grid():
    job = make_job(SGD)
    assert torch.equal(solve_on_best_grid(job)[1].scale, weight_grid(job).scale)


def with_upstream(job):
    """The job with Cov[u, u'] of student's inputs that are a tenth too large."""
    own = replace(job.moments, cross=job.moments.cov / 1.1)
    return replace(job, moments=own, moment_halves=(own, own))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_blocks_of_a_block_diagonal_h_change_nothing(spec, groups):
    full = block_diagonal(make_job(Gptq(damping=1e-6), spec=spec, groups=groups, taps=24), 8)
    one, other = (solve_on_best_grid(job) for job in (full, in_blocks(full, 8)))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1].scale, other[1].scale)
    assert output_power(full.weight, full.moments) == pytest.approx(
        output_power(full.weight, in_blocks(full, 8).moments)
    )


@pytest.mark.parametrize("method", [Gptq(), pytest.param(ADAROUND, marks=pytest.mark.slow)], ids=["gptq", "adaround"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_blocks_beat_nearest_on_the_full_h_and_keep_the_mean_output(method, spec):
    gain = 0.0
    for seed in range(5):
        full = make_job(method, seed=seed, spec=spec, groups=2, taps=24)
        blocks = in_blocks(full, 8)
        result = compress_layer(blocks)
        new = dequantize(result.weight.float(), result.weight_qparams)
        plain = weight_grid(full)
        errors = [
            output_power(full.weight - values.view_as(full.weight), full.moments)
            for values in (new, dequantize(nearest(full, plain).flatten(0, 1), plain))
        ]
        gain += math.log(errors[1] / errors[0])
        mean, own = full.moments.mean, full.moments.student_mean
        expected = torch.einsum("gon,gn->go", full.weight, mean).flatten() + full.bias
        found = torch.einsum("gon,gn->go", new.view_as(full.weight), own).flatten() + result.bias
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert gain > 0


@pytest.mark.parametrize("share", [0.5, "auto"])
def test_compensation_works_block_by_block(share):
    full = block_diagonal(with_upstream(make_job(Gptq(compensation=share), taps=24, groups=2)), 8)
    one, other = (compensated(job) for job in (full, in_blocks(full, 8)))
    assert one[1] == pytest.approx(other[1], abs=0.02) and other[1] > 0.4
    torch.testing.assert_close(one[0].weight, other[0].weight, rtol=0.02, atol=0.02)  # each block has its own damping


def test_bias_is_corrected_only_by_more_than_the_noise_of_the_mean():
    """The same shift, known from many rows or from three."""
    job = make_job(Nearest())
    small = replace(job.moments, student_mean=job.moments.mean)  # only the rounding of weights shifts the mean
    many, few = (compress_layer(replace(job, moments=replace(small, num_rows=n))) for n in (10**9, 1))
    assert many.dropped == () and not torch.equal(many.bias, job.bias)
    off = many.bias - job.bias
    expected = float(off.square().sum()) <= output_power(
        job.weight - dequantize(few.weight.float(), few.weight_qparams).view_as(job.weight), small
    )
    assert (few.dropped == ("bias correction",)) == expected == torch.equal(few.bias, job.bias)
