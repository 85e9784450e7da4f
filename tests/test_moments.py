"""Unfolded inputs against F.unfold and the layer itself; moments against a plain float64 covariance."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from datafree import moments
from datafree.affine import grid
from datafree.moments import chunks, gather_moments, output_size, positions, unfold
from datafree.records import Layer, MomentsError

torch.set_num_threads(1)

CONVS = {
    "3x3": ((3, 3), {}),
    "padded": ((3, 3), {"padding": (1, 1)}),
    "uneven padding": ((3, 3), {"padding": (2, 0)}),
    "strided": ((3, 3), {"stride": (2, 3)}),
    "dilated": ((3, 3), {"dilation": (2, 1), "padding": (2, 1)}),
    "grouped": ((3, 3), {"groups": 2}),
    "depthwise": ((3, 3), {"groups": 4, "padding": (1, 1), "stride": (2, 2)}),
    "1x1": ((1, 1), {}),
    "1x1 strided": ((1, 1), {"stride": (2, 2)}),
    "1x5": ((1, 5), {"padding": (0, 2)}),
    "everything": (
        (2, 3),
        {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2},
    ),
}
LINEARS = {"linear": (7, 5), "linear rank 3": (3, 4, 5), "linear rank 4": (2, 3, 4, 5)}
EVERY = pytest.mark.parametrize("name", [*CONVS, *LINEARS])
FULL = pytest.mark.parametrize("full", [True, False], ids=["full", "diagonal"])


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def case(name, offset=0.0):
    """Layer, kernel, input."""
    if name in LINEARS:
        return Layer("fc", "fc", "linear"), (1, 1), randn(*LINEARS[name]) + offset
    kernel, options = CONVS[name]
    return Layer("conv", "conv", "conv2d", **options), kernel, randn(3, 4, 8, 9) + offset


def everywhere(x, layer, kernel):
    return positions(tuple(x.shape), layer, kernel, 10**6, 0)


def columns(x, layer, kernel):
    """All inputs of the layer (r, g, n), by torch's own unfold."""
    if layer.kind == "linear":
        return x.reshape(-1, 1, x.shape[-1])
    u = F.unfold(x, kernel, dilation=layer.dilation, padding=layer.padding, stride=layer.stride)
    return u.transpose(1, 2).flatten(0, 1).reshape(-1, layer.groups, u.shape[1] // layer.groups)


def plain_moments(u):
    """Mean (g, n) and covariance (g, n, n) of (r, g, n), group by group, in float64."""
    u = u.numpy().astype(np.float64)
    each = [np.atleast_2d(np.cov(u[:, group].T, bias=True)) for group in range(u.shape[1])]
    return torch.from_numpy(u.mean(0)), torch.from_numpy(np.stack(each))


def assert_near(actual, expected, tolerance=1e-4):
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


@EVERY
def test_unfold_at_every_position_equals_torch(name):
    layer, kernel, x = case(name)
    at = everywhere(x, layer, kernel)
    assert len(at) == math.prod(output_size(tuple(x.shape), layer, kernel))
    assert torch.equal(unfold(x, layer, kernel, at), columns(x, layer, kernel))


@pytest.mark.parametrize("name", CONVS)
def test_memory_layout_of_the_input_does_not_matter(name):
    layer, kernel, x = case(name)
    at = everywhere(x, layer, kernel)
    wide = torch.cat([-x, x], 3)
    layouts = {
        "channels last": x.to(memory_format=torch.channels_last),
        "a slice": wide[..., x.shape[3] :],
        "every second image": torch.stack([-x, x], 1).flatten(0, 1)[1::2],
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
    }
    for layout, value in layouts.items():
        assert torch.equal(unfold(value, layer, kernel, at), columns(x, layer, kernel)), layout


@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.sampled_from([1, 2, 4]),
    side=st.tuples(st.integers(1, 7), st.integers(1, 7)),
)
@settings(max_examples=60, deadline=None)
def test_weights_times_columns_is_the_convolution(kernel, stride, padding, dilation, groups, side):
    assume(all(side[i] + 2 * padding[i] > dilation[i] * (kernel[i] - 1) for i in (0, 1)))
    layer = Layer("conv", "conv", "conv2d", stride, padding, dilation, groups)
    x, weight = randn(2, 4, *side), randn(8, 4 // groups, *kernel, seed=1)
    expected = F.conv2d(x, weight, None, stride, padding, dilation, groups)
    assert output_size(tuple(x.shape), layer, kernel) == (2, *expected.shape[2:])
    u = unfold(x, layer, kernel, everywhere(x, layer, kernel))
    y = torch.einsum("rgn,gon->rgo", u, weight.reshape(groups, 8 // groups, -1)).flatten(1)
    torch.testing.assert_close(y, expected.permute(0, 2, 3, 1).flatten(0, 2), rtol=1e-4, atol=1e-4)


@EVERY
def test_positions_are_drawn_inside_the_output_and_by_the_seed(name):
    layer, kernel, x = case(name)
    size = output_size(tuple(x.shape), layer, kernel)
    drawn = positions(tuple(x.shape), layer, kernel, 5, 0)
    assert drawn.shape == (5, 3)
    assert (drawn >= 0).all() and (drawn < torch.tensor(size)).all()
    assert torch.equal(drawn, positions(tuple(x.shape), layer, kernel, 5, 0))
    assert not torch.equal(drawn, positions(tuple(x.shape), layer, kernel, 5, 1))
    rows = columns(x, layer, kernel).unflatten(0, size)
    assert torch.equal(unfold(x, layer, kernel, drawn), rows[drawn[:, 0], drawn[:, 1], drawn[:, 2]])


@EVERY
def test_moments_equal_a_plain_covariance(name):
    layer, kernel, x = case(name)
    at = everywhere(x, layer, kernel)
    found = gather_moments(x, layer, kernel, at, qparams=None, full=True)
    mean, cov = plain_moments(columns(x, layer, kernel))
    assert found.num_rows == len(at)
    assert_near(found.mean, mean)
    assert_near(found.cov, cov)
    assert torch.equal(found.student_mean, found.mean)


@pytest.mark.parametrize("name", [*LINEARS, "3x3", "strided", "grouped", "1x1"])  # padding is not far from 0
def test_offset_of_the_input_costs_no_precision(name):
    layer, kernel, x = case(name, 1000.0)
    at = everywhere(x, layer, kernel)
    found = gather_moments(x, layer, kernel, at, qparams=None, full=True)
    cov = plain_moments(columns(x, layer, kernel))[1]
    assert_near(found.cov, cov)
    u = columns(x, layer, kernel).permute(1, 2, 0)
    naive = u @ u.transpose(1, 2) / len(at) - found.mean[:, :, None] * found.mean[:, None]
    assert (naive.double() - cov).abs().max() > 0.01  # float32 without the shift


@EVERY
@FULL
def test_student_moments_are_of_the_rounded_input(name, full):
    layer, kernel, x = case(name, 0.7)
    qparams = grid(torch.tensor([-0.5]), torch.tensor([2.0]), bits=3, symmetric=False)
    found = gather_moments(x, layer, kernel, everywhere(x, layer, kernel), qparams=qparams, full=full)
    u = columns(x, layer, kernel)
    step, zero_point = 2.5 / 7, round(0.5 / (2.5 / 7))
    rounded = (np.clip(np.round(u.numpy() / step) + zero_point, 0, 7) - zero_point) * step
    mean, cov = plain_moments(torch.from_numpy(rounded))
    assert_near(found.mean, plain_moments(u)[0])
    assert_near(found.student_mean, mean)
    assert_near(found.cov, cov if full else cov.diagonal(dim1=1, dim2=2))
    assert (found.mean - found.student_mean).abs().max() > 0.01


@EVERY
def test_diagonal_is_the_diagonal_of_the_full_covariance(name):
    layer, kernel, x = case(name, 3.0)
    at = everywhere(x, layer, kernel)
    full, diagonal = (gather_moments(x, layer, kernel, at, qparams=None, full=full) for full in (True, False))
    assert diagonal.cov.shape == diagonal.mean.shape and full.cov.shape[1:] == 2 * full.mean.shape[1:]
    assert torch.equal(diagonal.variance, diagonal.cov)
    torch.testing.assert_close(diagonal.variance, full.variance, rtol=1e-5, atol=1e-5)
    assert torch.equal(diagonal.mean, full.mean)


@EVERY
@FULL
@pytest.mark.parametrize("num_rows", [1, 3], ids=["row by row", "three rows"])
def test_chunks_change_nothing(name, full, num_rows, monkeypatch):
    layer, kernel, x = case(name, 100.0 if name in LINEARS else 1.0)
    at = everywhere(x, layer, kernel)
    whole = gather_moments(x, layer, kernel, at, qparams=None, full=full)
    monkeypatch.setattr(moments, "CHUNK", num_rows * whole.mean.numel())
    pieces = list(chunks(x, layer, kernel, at))
    assert len(pieces) == math.ceil(len(at) / num_rows) and torch.equal(torch.cat(pieces), columns(x, layer, kernel))
    parts = gather_moments(x, layer, kernel, at, qparams=None, full=full)
    assert parts.num_rows == whole.num_rows
    torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts.cov, whole.cov, rtol=1e-4, atol=1e-4)


def test_input_is_only_read():
    layer, kernel, x = case("everything")
    before = x.clone()
    qparams = grid(torch.tensor([-1.0]), torch.tensor([1.0]), bits=2, symmetric=False)
    unfold(x, layer, kernel, everywhere(x, layer, kernel)).zero_()
    gather_moments(x, layer, kernel, everywhere(x, layer, kernel), qparams=qparams, full=True)
    assert torch.equal(x, before)


@FULL
@pytest.mark.parametrize("quantized", [False, True], ids=["float", "quantized"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["padded", "linear"])
def test_input_that_is_not_finite_is_refused(name, value, quantized, full):
    layer, kernel, x = case(name)
    x.view(-1)[3] = value
    qparams = grid(torch.tensor([-1.0]), torch.tensor([1.0]), bits=8, symmetric=False)
    with pytest.raises(MomentsError, match="mean of the layer's inputs is not finite; look at the layers before it"):
        at = everywhere(x, layer, kernel)
        gather_moments(x, layer, kernel, at, qparams=qparams if quantized else None, full=full)
