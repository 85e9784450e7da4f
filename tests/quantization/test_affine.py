"""Integer grids: properties over random rows, and every number against a plain restatement in float32."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from datafree.quantization.affine import (
    CLIP_RATIOS,
    choose_qparams,
    dequantize,
    fake_quantize,
    quantize,
    search_grid,
    signed_range,
)
from datafree.records import QParams

BITS = pytest.mark.parametrize("bits", range(2, 9))
SYMMETRIC = pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])

finite = st.floats(-1e4, 1e4, width=32)
shapes = st.tuples(st.integers(1, 4), st.integers(1, 9))
rows_of_floats = shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=finite)).map(torch.from_numpy)
widths = {"bits": st.integers(2, 8), "symmetric": st.booleans()}
quick = settings(max_examples=40, deadline=None)


def min_max(rows, bits, symmetric):
    return choose_qparams(rows.amin(1), rows.amax(1), bits=bits, symmetric=symmetric)


def weighted_error(rows, qparams, importance):
    return ((fake_quantize(rows, qparams) - rows).double().square() * importance).sum(1)


def plain_grid(low, high, bits, symmetric):
    """scale, zero_point, qmin, qmax of one row, in the words of the docstring, one float32 at a time."""
    low, high = np.float32(min(low, 0)), np.float32(max(high, 0))
    qmin, qmax = (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    span = max(-low, high) if symmetric else high - low
    scale = np.float32(span) / np.float32(qmax)
    if scale <= 1e-12:
        return np.float32(1), 0, qmin, qmax
    return scale, 0 if symmetric else round(float(-low / scale)), qmin, qmax


def plain_integer(x, scale, zero_point, qmin, qmax):
    return min(max(round(float(np.float32(x) / scale)) + zero_point, qmin), qmax)


@given(rows=rows_of_floats, **widths)
@quick
def test_grid_and_integers_equal_a_plain_restatement(rows, bits, symmetric):
    qparams = min_max(rows, bits, symmetric)
    q, real = quantize(rows, qparams), fake_quantize(rows, qparams)
    for i, row in enumerate(rows.numpy()):
        scale, zero_point, qmin, qmax = plain_grid(row.min(), row.max(), bits, symmetric)
        assert qparams.scale[i].item() == scale and qparams.zero_point[i].item() == zero_point
        assert (qparams.qmin, qparams.qmax) == (qmin, qmax)
        expected = [plain_integer(x, scale, zero_point, qmin, qmax) for x in row]
        assert q[i].tolist() == expected
        assert real[i].tolist() == [float(np.float32(k - zero_point) * scale) for k in expected]


@given(rows=rows_of_floats, **widths)
@quick
def test_min_max_grid_holds_zero_and_is_half_a_step_off_at_most(rows, bits, symmetric):
    qparams = min_max(rows, bits, symmetric)
    assert (qparams.qmin <= qparams.zero_point).all() and (qparams.zero_point <= qparams.qmax).all()
    assert not fake_quantize(torch.zeros_like(rows), qparams).any()
    error = (fake_quantize(rows, qparams) - rows).abs()
    assert (error <= qparams.scale[:, None] * (0.5 + 1e-4)).all()


@given(rows=rows_of_floats, factor=st.floats(-3, 3), **widths)
@quick
def test_integers_stay_in_range_and_rounding_twice_changes_nothing(rows, factor, bits, symmetric):
    qparams = min_max(rows, bits, symmetric)
    q = quantize(rows * factor, qparams)  # beyond the grid where |factor| > 1
    assert torch.equal(q, q.round()) and q.min() >= qparams.qmin and q.max() <= qparams.qmax
    once = dequantize(q, qparams)
    assert torch.equal(quantize(once, qparams), q)
    assert torch.equal(fake_quantize(once, qparams), once)


@given(rows=rows_of_floats, seed=st.integers(0, 9), **widths)
@quick
def test_search_is_never_worse_than_min_max(rows, seed, bits, symmetric):
    importance = torch.rand(rows.shape, generator=torch.Generator().manual_seed(seed)) ** 4
    found = search_grid(rows, bits=bits, symmetric=symmetric, importance=importance, ratios=CLIP_RATIOS[::5])
    plain = weighted_error(rows, min_max(rows, bits, symmetric), importance)
    assert (weighted_error(rows, found, importance) <= plain * (1 + 1e-5)).all()
    assert not fake_quantize(torch.zeros_like(rows), found).any()


@SYMMETRIC
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_search_finds_the_best_of_its_ratios_row_by_row(bits, symmetric):
    generator = torch.Generator().manual_seed(bits)
    rows = torch.randn(5, 40, generator=generator) ** 3
    importance = torch.rand(5, 40, generator=generator)
    found = search_grid(rows, bits=bits, symmetric=symmetric, importance=importance)
    achieved = weighted_error(rows, found, importance)
    for i, row in enumerate(rows.numpy()):
        errors = []
        for ratio in CLIP_RATIOS:
            scale, zero_point, *ends = plain_grid(row.min() * ratio, row.max() * ratio, bits, symmetric)
            values = [(plain_integer(x, scale, zero_point, *ends) - zero_point) * float(scale) for x in row]
            errors.append(((np.array(values) - row) ** 2 * importance[i].numpy()).sum())
        assert achieved[i].item() == pytest.approx(min(errors), rel=1e-4)
        alone = search_grid(rows[i : i + 1], bits=bits, symmetric=symmetric, importance=importance[i : i + 1])
        assert alone.scale == found.scale[i] and alone.zero_point == found.zero_point[i]


@SYMMETRIC
def test_search_clips_an_outlier_unless_it_is_important(symmetric):
    rows = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    rows[0, 0] = 12
    alike = search_grid(rows, bits=4, symmetric=symmetric)
    widest = min_max(rows, 4, symmetric)
    assert weighted_error(rows, alike, 1) < 0.6 * weighted_error(rows, widest, 1)
    assert fake_quantize(rows, alike)[0, 0] < 8
    importance = torch.ones_like(rows)
    importance[0, 0] = 1e7
    kept = search_grid(rows, bits=4, symmetric=symmetric, importance=importance)
    assert fake_quantize(rows, kept)[0, 0].item() == pytest.approx(12, rel=0.02)


@BITS
@SYMMETRIC
@pytest.mark.parametrize("choose", [min_max, search_grid], ids=["min-max", "search"])
def test_rows_of_zeros_and_of_one_value(choose, bits, symmetric):
    rows = torch.tensor([0.0, 3.7, -3.7, 1e-6, -2e4])[:, None].repeat(1, 3)
    rows = torch.cat([rows, torch.full((1, 3), -0.0)])
    qparams = choose(rows, bits=bits, symmetric=symmetric)
    assert qparams.bits == bits and len(qparams.scale) == len(rows)
    assert qparams.scale[0] == qparams.scale[5] == 1
    torch.testing.assert_close(fake_quantize(rows, qparams), rows, rtol=1e-6, atol=0)


@BITS
def test_symmetric_range_is_the_same_on_both_sides(bits):
    qmin, qmax = signed_range(bits)
    assert qmin == -qmax and qmax == {2: 1, 3: 3, 4: 7, 5: 15, 6: 31, 7: 63, 8: 127}[bits]
    qparams = choose_qparams(torch.tensor([-1.0]), torch.tensor([0.5]), bits=bits, symmetric=True)
    assert quantize(torch.tensor([[-1.0, 0.0, 1.0]]), qparams).tolist() == [[qmin, 0, qmax]]


@pytest.mark.parametrize("low, high, zero_point", [(1.0, 2.0, 0), (-2.0, -1.0, 15), (-1.0, 2.0, 5)], ids=str)
def test_range_is_widened_to_hold_zero(low, high, zero_point):
    qparams = choose_qparams(torch.tensor([low]), torch.tensor([high]), bits=4, symmetric=False)
    assert qparams.zero_point.item() == zero_point
    span = max(high, 0) - min(low, 0)
    assert qparams.scale.item() == pytest.approx(span / 15)


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 2, 5, 5)], ids=str)
def test_scales_go_along_the_first_dimension(shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    qparams = choose_qparams(-torch.rand(3, generator=generator), torch.ones(3), bits=5, symmetric=False)
    for i in range(3):
        own = QParams(qparams.scale[i : i + 1], qparams.zero_point[i : i + 1], 0, 31)
        assert torch.equal(fake_quantize(x, qparams)[i], fake_quantize(x[i : i + 1], own)[0])


def test_float64_values_keep_their_width():
    qparams = choose_qparams(torch.tensor([-1.0]), torch.tensor([1.0]), bits=8, symmetric=True)
    assert fake_quantize(torch.zeros(2, 2, dtype=torch.float64), qparams).dtype == torch.float64


def test_no_ratio_is_refused():
    with pytest.raises(AssertionError, match="no clipping ratio was given"):
        search_grid(torch.ones(1, 2), bits=4, symmetric=False, ratios=())


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_scale_that_is_not_positive_is_refused(scale):
    with pytest.raises(AssertionError, match="a scale must be positive"):
        QParams(torch.tensor([scale]), torch.tensor([0], dtype=torch.int32), 0, 15)
