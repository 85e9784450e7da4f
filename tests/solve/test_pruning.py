"""Pruning of one layer: least squares against a direct solve, who beats whom, zeros that stay zero."""

import itertools
import math
import pickle
from dataclasses import replace

import pytest
import torch

from datafree.quantization.affine import dequantize
from datafree.quantization.sparsity import in_cells, without_least
from datafree.recipe import AdaRound, Gptq, Nearest, SQuant, StraightThrough
from datafree.records import PruneSpec, WeightSpec
from datafree.solve.pruning import (
    count_schedule,
    inverse,
    price_of,
    pruned,
    refit,
    square_error,
    swapped,
    thinned,
    times,
)
from datafree.solve.rounding.gptq import damped
from datafree.solve.rounding.nearest import nearest
from datafree.solve.rounding.straight_through import trained
from datafree.solve.solve_layer import LayerError, compress_layer
from datafree.solve.weight_grids import output_power, weight_grid
from jobs import METHODS, assert_same_results, block_diagonal, in_blocks, make_job, with_covariance

SGD = StraightThrough(steps=60, rows=64, lr=3e-3)
FLOAT = WeightSpec(None)
SHAPES = pytest.mark.parametrize(
    "groups, rows, taps", [(1, 6, 24), (3, 4, 8), (5, 1, 4)], ids=["all", "grouped", "depthwise"]
)


def pruning(job, sparsity, *, score="output", steps=8, pattern=None, bits=None):
    """The job that asks for zeros."""
    size = job.weight.numel()
    count = round(sparsity * size) if pattern is None else size // pattern[1] * (pattern[1] - pattern[0])
    return replace(job, spec=WeightSpec(bits, True, bits == 8, PruneSpec(count, score, steps, pattern)))


def some_kept(job, seed=0):
    """A random mask with an empty and a full row in each group."""
    keep = torch.rand(job.weight.shape, generator=torch.Generator().manual_seed(seed)) > 0.5
    if keep.shape[1] > 1:
        keep[:, 0], keep[:, 1] = False, True
    return keep


def quadratic(job, damping=0.01):
    """H, its inverse and the weights, all float64; float32 sums of three threads and more are not quite symmetric."""
    h = damped((job.moments.cov + job.moments.cov.mT) / 2, damping)
    return h, inverse(h), job.weight.double()


def solved_directly(weight, h, keep):
    """Row after row: H_SS x_S = (H w)_S."""
    x = torch.zeros_like(weight)
    for group in range(len(weight)):
        for row, (w, kept) in enumerate(zip(weight[group], keep[group], strict=True)):
            s = kept.nonzero().flatten()
            x[group, row, s] = torch.linalg.solve(h[group][s][:, s], (h[group] @ w)[s])
    return x


# Least squares


@SHAPES
@pytest.mark.parametrize("seed", range(3))
def test_refit_is_least_squares_on_each_rows_support(groups, rows, taps, seed):
    """H_SS (expected - found) is what is left of the residual, and H_SS has no eigenvalue below the least of H."""
    job = make_job(Gptq(), seed=seed, groups=groups, rows=rows, taps=taps)
    h, inverted, w = quadratic(job)
    keep = some_kept(job, seed)
    found = refit(w, h, inverted, keep, w * keep, 1e-7)
    off, residual = found - solved_directly(w, h, keep), (w * ~keep) @ h * keep
    allowed = 1e-7 * residual.norm(dim=2) / torch.linalg.eigvalsh(h).amin(1, keepdim=True)
    assert bool((off.norm(dim=2) <= 1.01 * allowed + 1e-10).all()) and allowed.max() < 1e-4 * w.abs().max()
    assert (found - w * keep).abs().max() > 0.1 and not found[~keep].any()
    if rows > 1:
        assert not found[:, 0].any() and torch.equal(found[:, 1], w[:, 1])


@pytest.mark.parametrize("groups", [1, 2])
def test_refit_of_blocks_is_that_of_a_block_diagonal_h(groups):
    full = block_diagonal(make_job(Gptq(), groups=groups, taps=24), 8)
    h, inverted, w = quadratic(in_blocks(full, 8))
    assert h.shape == (groups * 3, 8, 8)
    whole = torch.stack([torch.block_diag(*part) for part in h.view(groups, 3, 8, 8)])
    keep = some_kept(full)
    found = refit(w, h, inverted, keep, w * keep, 1e-7)
    assert (found - solved_directly(w, whole, keep)).abs().max() <= 1e-5 * w.abs().max()
    torch.testing.assert_close(times(w, h), w @ whole)
    assert square_error(found - w, h) == pytest.approx(
        torch.einsum("gon,gnm,gom->", found - w, whole, found - w).item()
    )


@pytest.mark.parametrize("kind", ["empty", "full"])
def test_refit_of_all_or_nothing_is_itself(kind):
    h, inverted, w = quadratic(make_job(Gptq()))
    keep = torch.full_like(w, kind == "full", dtype=torch.bool)
    assert torch.equal(refit(w, h, inverted, keep, w * keep, 1e-7), w * keep)


def test_refit_from_any_start_ends_at_the_same_weights():
    job = make_job(Gptq())
    h, inverted, w = quadratic(job)
    keep = some_kept(job)
    far = torch.randn(w.shape, generator=torch.Generator().manual_seed(1)).double() * keep
    ends = [refit(w, h, inverted, keep, start, 1e-8) for start in (w * keep, far, torch.zeros_like(w))]
    for end in ends[1:]:
        assert (end - ends[0]).abs().max() <= 1e-5 * w.abs().max()


def test_a_rough_refit_lowers_the_error_and_a_finer_one_lowers_it_more():
    job = make_job(Gptq(), taps=64, rank=12)
    h, inverted, w = quadratic(job)
    keep = some_kept(job)
    best = square_error(w - solved_directly(w, h, keep), h)
    start, rough, fine = (square_error(w - refit(w, h, inverted, keep, w * keep, t), h) for t in (1e9, 1e-1, 1e-4))
    assert start == square_error(w * ~keep, h)
    assert start > 2 * rough and rough > fine >= best * (1 - 1e-9)
    assert fine <= best * (1 + 1e-6)


# Which weights go


@pytest.mark.parametrize("steps", [1, 16])
@pytest.mark.parametrize("size, count", [(100, 50), (100, 99), (576, 5), (576, 575), (9, 4), (7, 7)])
def test_schedule_ends_at_the_count_and_never_falls(steps, size, count):
    found = count_schedule(PruneSpec(count, "output", steps), size)
    assert len(found) == steps and found[-1] == count
    assert found == sorted(found) and found[0] >= 0


def test_every_step_takes_the_same_share_of_what_is_left():
    left = [10_000, *(10_000 - n for n in count_schedule(PruneSpec(9_000, "output", 8), 10_000))]
    shares = [b / a for a, b in itertools.pairwise(left)]
    assert all(share == pytest.approx(0.1 ** (1 / 8), abs=1e-3) for share in shares)


def problem(seed, groups=1):
    """H and its inverse as they are on the way, float32, and the weights."""
    job = make_job(Gptq(), seed=seed, groups=groups, rows=8, taps=72, rank=12)
    h, inverted, _ = quadratic(job)
    return job.weight, h.float(), inverted.float()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sparsity, times_better", [(0.5, 1.02), (0.8, 1.3)])
def test_many_steps_beat_one_by_either_score(seed, sparsity, times_better):
    weight, h, inverted = problem(seed)
    spec = PruneSpec(round(sparsity * weight.numel()), "output", 16)
    *_, (x, keep) = thinned(weight, h, inverted, count_schedule(spec, weight.numel()), None)
    assert int((~keep).sum()) == spec.count and not x[~keep].any()
    ours = square_error(weight - x, h)
    for score in (weight.abs(), weight.square() * price_of(h, inverted, weight)):
        mask = without_least(score, spec.count, None)
        at_once = square_error(weight - refit(weight, h, inverted, mask, weight * mask, 1e-4), h)
        assert times_better * ours < at_once < square_error(weight * ~mask, h)


def test_price_lies_between_helped_by_nothing_and_by_everything():
    weight, h, inverted = problem(0, groups=2)
    price = price_of(h, inverted, weight)
    alone, helped = h.diagonal(dim1=1, dim2=2)[:, None], 1 / inverted.diagonal(dim1=1, dim2=2)[:, None]
    assert price.shape == (2, 1, 72) and (helped < price).all() and (price < alone).all()
    torch.testing.assert_close(price.square(), alone * helped)


@pytest.mark.parametrize("pattern", [None, (2, 4, 9), (1, 4, 9), (2, 4, 1), (1, 2, 3)], ids=str)
def test_swaps_never_raise_the_error_and_keep_count_and_pattern(pattern):
    moved = []
    for seed in range(3):
        weight, h, inverted = problem(seed, groups=2)
        size = weight.numel()
        count = round(0.8 * size) if pattern is None else size // pattern[1] * (pattern[1] - pattern[0])
        random = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed))  # leaves much to gain
        start = without_least(random, count, pattern)
        x = refit(weight, h, inverted, start, weight * start, 1e-2)
        better, keep = swapped(weight, h, inverted, x, start, pattern)
        assert int((~keep).sum()) == count and not better[~keep].any()
        assert square_error(weight - better, h) <= square_error(weight - x, h)
        if pattern is not None:
            assert set(in_cells(keep.int(), pattern).sum(3).unique().tolist()) == {pattern[0]}
        moved.append(square_error(weight - better, h) < 0.9 * square_error(weight - x, h) and not keep.equal(start))
    assert all(moved)


def test_swaps_stop_where_nothing_is_gained():
    weight, h, inverted = problem(0)
    all_there = torch.ones_like(weight, dtype=torch.bool)
    x, keep = swapped(weight, h, inverted, weight, all_there, None)
    assert torch.equal(x, weight) and keep.all()
    nothing = torch.zeros_like(all_there)
    x, keep = swapped(weight, h, inverted, torch.zeros_like(weight), nothing, None)
    assert not x.any() and not keep.any()


# One layer, float


@METHODS
@pytest.mark.parametrize("score", ["output", "magnitude"])
@pytest.mark.parametrize("sparsity", [0.77])
def test_as_many_zeros_as_asked(method, score, sparsity):
    job = pruning(make_job(method, groups=2), sparsity, score=score)
    result = compress_layer(job)
    assert result.weight_qparams is None and result.bits == 32 and result.weight.dtype == torch.float32
    assert int((result.weight == 0).sum()) == job.spec.prune.count == round(sparsity * 240)
    assert result.sparsity == pytest.approx(round(sparsity * 240) / 240)


@METHODS
@pytest.mark.parametrize("score", ["output", "magnitude"])
def test_an_nm_pattern_holds_in_every_cell(method, score):
    pattern = (1, 4, 5)
    result = compress_layer(pruning(make_job(method, groups=2), None, score=score, pattern=pattern))
    stay = in_cells((result.weight != 0).int().view(2, 6, 20), pattern).sum(3)
    assert stay.shape == (2, 6, 1, 5) and (stay == 1).all()


@pytest.mark.parametrize("method", [Nearest(), SQuant(), AdaRound()], ids=lambda m: m.method)
@pytest.mark.parametrize("score", ["output", "magnitude"])
def test_methods_that_only_round_leave_the_weights_that_stay(method, score):
    job = pruning(make_job(method, groups=3), 0.5, score=score)
    found = compress_layer(job).weight.view_as(job.weight)
    stay = found != 0
    assert torch.equal(found[stay], job.weight[stay])
    size = job.weight.abs() if score == "magnitude" else job.weight.square() * job.moments.variance[:, None]
    assert size[~stay].max() <= size[stay].min()


@pytest.mark.parametrize("seed", range(3))
def test_each_step_towards_closed_lowers_the_output_error(seed):
    """A mask by magnitude, by output, refit, chosen gradually."""
    h = make_job(Gptq(), seed=seed, taps=40).moments
    errors = []
    for method, score in ((Nearest(), "magnitude"), (Gptq(), "magnitude"), (Gptq(), "output")):
        job = pruning(make_job(method, seed=seed, taps=40), 0.7, score=score)
        result = compress_layer(job)
        errors.append(output_power(job.weight - result.weight.view_as(job.weight), h))
    assert errors[0] > 2 * errors[1] > 2 * 1.1 * errors[2]


def test_error_and_bias_are_measured_against_the_weights_before_pruning():
    job = pruning(make_job(Gptq(), groups=2), 0.6)
    result = compress_layer(job)
    w, new, h = job.weight.double(), result.weight.double().view_as(job.weight), job.moments.cov.double()
    power, error = (torch.einsum("gon,gnm,gom->", x, h, x).item() for x in (w, w - new))
    assert result.error_db == pytest.approx(10 * math.log10(power / error), abs=1e-3)
    before = torch.einsum("gon,gn->go", w, job.moments.mean.double()).flatten() + job.bias
    after = torch.einsum("gon,gn->go", new, job.moments.student_mean.double()).flatten() + result.bias
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("spec", [FLOAT, replace(FLOAT, prune=PruneSpec(0, "output", 4))], ids=["none", "zero"])
def test_a_job_that_asks_for_no_zeros_is_left_alone(spec):
    job = replace(make_job(Gptq()), spec=spec)
    assert pruned(job) is job


def test_all_weights_may_go():
    result = compress_layer(pruning(make_job(Gptq()), 1.0))
    assert not result.weight.any() and result.sparsity == 1.0 and result.error_db == 0


@pytest.mark.parametrize("groups", [1, 2])
def test_pruning_knows_blocks(groups):
    full = pruning(block_diagonal(make_job(Gptq(damping=1e-6), groups=groups, taps=24), 8), 0.6)
    one, other = (pruned(job) for job in (full, in_blocks(full, 8)))
    assert torch.equal(one.keep, other.keep)
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-3, atol=1e-3)


@METHODS
@pytest.mark.parametrize("bits", [None, 4])
def test_a_pruning_job_is_only_read_and_solved_the_same_on_any_number_of_threads(method, bits):
    job = pruning(make_job(method, rows=24, taps=100), 0.6, bits=bits)
    before = pickle.dumps(job)
    result = compress_layer(job)
    assert pickle.dumps(job) == before
    torch.set_num_threads(3)
    assert_same_results([compress_layer(pickle.loads(before))], [result])


@pytest.mark.parametrize("score", ["output", "magnitude"])
def test_pruning_that_fails_names_layer_method_and_shapes(score):
    job = pruning(make_job(Gptq()), 0.5, score=score)
    with pytest.raises(LayerError, match=r"^block\.conv: gptq failed on weight \(1, 6, 20\).*not positive-definite"):
        compress_layer(with_covariance(job, -torch.eye(20)[None]))


# Training masked weights


def held_out_error(weight, job):
    rows = job.rows[: len(job.rows) // 4]
    return torch.einsum("rgn,gon->rgo", rows, job.target - weight).var(0, unbiased=False)


@SHAPES
@pytest.mark.parametrize("lr", [3e-3, 1e6])
def test_training_keeps_zeros_and_never_errs_more_than_its_start(groups, rows, taps, lr):
    start = pruned(
        pruning(make_job(StraightThrough(steps=40, rows=64, lr=lr), groups=groups, rows=rows, taps=taps), 0.5)
    )
    found = trained(start)
    assert torch.equal(found == 0, ~start.keep)
    before, after = held_out_error(start.weight, start), held_out_error(found, start)
    assert (after <= before * (1 + 1e-5)).all()
    if lr < 1:
        assert after.sum() < 0.9 * before.sum()
    else:
        assert torch.equal(found, start.weight)


@pytest.mark.parametrize("bits, near", [(4, 1.3), (8, 1.1)])
def test_training_through_rounding_comes_near_to_training_without(bits, near):
    """The weights that are gone are gone while it trains, so that what it looks at is what it returns."""
    ours = floats = 0.0
    for seed in range(4):
        job = pruning(make_job(StraightThrough(steps=40, rows=64, lr=3e-3), seed=seed), 0.5, bits=bits)
        start, result = pruned(job), compress_layer(job)
        qparams = weight_grid(start)
        rounded = dequantize(nearest(start, qparams).flatten(0, 1), qparams).view_as(start.weight)
        new = dequantize(result.weight.float(), result.weight_qparams).view_as(start.weight)
        before, after = held_out_error(rounded, start), held_out_error(new, start)
        assert (after <= before * (1 + 1e-5)).all()
        ours, floats = ours + after.sum(), floats + held_out_error(trained(start), start).sum()
    assert ours < near * floats


# Zeros and bits together


@METHODS
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("per_channel", [True, False], ids=["channel", "tensor"])
def test_integers_are_zero_points_where_weights_are_gone(method, bits, per_channel):
    job = pruning(make_job(method, groups=2), 0.6, bits=bits)
    job = replace(job, spec=replace(job.spec, per_channel=per_channel))
    keep = pruned(job).keep.flatten(0, 1)
    result = compress_layer(job)
    zero = result.weight_qparams.zero_point[:, None].expand_as(result.weight)
    assert int((~keep).sum()) == job.spec.prune.count
    assert torch.equal(result.weight[~keep].int(), zero[~keep])
    assert (result.weight != zero)[keep].double().mean() > 0.8
    assert result.sparsity == pytest.approx((result.weight == zero).double().mean().item())
    assert bits == 8 or zero.any()


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_gptq_on_a_mask_beats_rounding_the_refit_weights_to_nearest(bits):
    for seed in range(3):
        job = pruning(make_job(Gptq(), seed=seed, taps=40), 0.6, bits=bits)
        result, refitted = compress_layer(job), pruned(job)
        qparams = weight_grid(refitted)
        rounded = dequantize(nearest(refitted, qparams).flatten(0, 1), qparams).view_as(job.weight)
        assert not rounded[~refitted.keep].any()
        new = dequantize(result.weight.float(), result.weight_qparams).view_as(job.weight)
        ours, theirs = (output_power(job.weight - x, job.moments) for x in (new, rounded))
        assert ours < theirs * {8: 1, 4: 0.9, 3: 0.8}[bits]
        assert ours > output_power(job.weight - refitted.weight, job.moments)  # bits are not free


def test_an_nm_pattern_holds_among_integers():
    pattern = (2, 4, 5)
    result = compress_layer(pruning(make_job(Gptq()), None, pattern=pattern, bits=4))
    zero = result.weight_qparams.zero_point[:, None]
    assert int(in_cells((result.weight != zero).int().view(1, 6, 20), pattern).sum(3).max()) == 2
