"""Moments of a layer's inputs against a plain float64 covariance."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from alive import Alive
from datafree.graph import columns as column_module
from datafree.graph.columns import chunks, positions, unfold
from datafree.quantization.affine import choose_qparams
from datafree.records import Layer, MomentsError
from datafree.solve import moments
from datafree.solve.compensation import least_squares
from datafree.solve.moments import block_size, gather_moments, merged, shrunk
from jobs import convolution

CONVS = {
    "1x5": ((1, 5), {"padding": (0, 2)}),
    "grouped": ((3, 3), {"groups": 2}),
    "everything": ((2, 3), {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}),
}
LINEARS = {"linear": (7, 5), "linear rank 3": (3, 4, 5)}
EVERY = pytest.mark.parametrize("name", [*CONVS, *LINEARS])
FULL = pytest.mark.parametrize("full", [True, False], ids=["full", "diagonal"])


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def case(name, offset=0.0):
    """Layer, input."""
    if name in LINEARS:
        return Layer("fc", "fc", "linear"), randn(*LINEARS[name]) + offset
    kernel, options = CONVS[name]
    return convolution(kernel, **options), randn(3, 4, 8, 9) + offset


def everywhere(x, layer):
    return positions(x.shape, layer, 10**6, 0)


def columns(x, layer):
    """All inputs of the layer (r, g, n), by torch's own unfold."""
    if layer.kind == "linear":
        return x.reshape(-1, 1, x.shape[-1])
    u = F.unfold(x, layer.kernel, dilation=layer.dilation, padding=layer.padding, stride=layer.stride)
    return u.transpose(1, 2).flatten(0, 1).reshape(-1, layer.groups, u.shape[1] // layer.groups)


def plain_moments(u):
    """Mean (g, n) and covariance (g, n, n) of (r, g, n), group by group, in float64."""
    u = u.numpy().astype(np.float64)
    each = [np.atleast_2d(np.cov(u[:, group].T, bias=True)) for group in range(u.shape[1])]
    return torch.from_numpy(u.mean(0)), torch.from_numpy(np.stack(each))


def assert_near(actual, expected, tolerance=1e-4):
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


@EVERY
def test_moments_equal_a_plain_covariance(name):
    layer, x = case(name)
    at = everywhere(x, layer)
    found = gather_moments(x, layer, at, qparams=None, full=True)
    mean, cov = plain_moments(columns(x, layer))
    assert found.num_rows == len(at)
    assert_near(found.mean, mean)
    assert_near(found.cov, cov)
    assert torch.equal(found.student_mean, found.mean)


@EVERY
@FULL
def test_shift_may_be_far_from_the_mean(name, full, monkeypatch):
    layer, x = case(name)
    at, own = everywhere(x, layer), x + 0.1 * randn(*x.shape, seed=1)
    monkeypatch.setattr(moments, "SHIFT_ROWS", 1)  # that is the first row
    found = gather_moments(x, layer, at, qparams=None, full=full, student_x=own)
    (mean, _), (own_mean, cov) = (plain_moments(columns(t, layer)) for t in (x, own))
    assert_near(found.mean, mean)
    assert_near(found.student_mean, own_mean)
    assert_near(found.cov, cov if full else cov.diagonal(dim1=1, dim2=2))
    if full:
        u, v = (columns(t, layer).double() for t in (x, own))
        assert_near(found.cross, torch.einsum("rgi,rgj->gij", u - u.mean(0), v - v.mean(0)) / len(u))


@pytest.mark.parametrize("name", [*LINEARS, "grouped"])  # padding is not far from 0
def test_offset_of_the_input_costs_no_precision(name):
    layer, x = case(name, 1000.0)
    at = everywhere(x, layer)
    found = gather_moments(x, layer, at, qparams=None, full=True)
    cov = plain_moments(columns(x, layer))[1]
    assert_near(found.cov, cov)
    u = columns(x, layer).permute(1, 2, 0)
    naive = u @ u.transpose(1, 2) / len(at) - found.mean[:, :, None] * found.mean[:, None]
    assert (naive.double() - cov).abs().max() > 0.01  # float32 without the shift


@EVERY
@FULL
def test_student_moments_are_of_the_rounded_input(name, full):
    layer, x = case(name, 0.7)
    qparams = choose_qparams(torch.tensor([-0.5]), torch.tensor([2.0]), bits=3, symmetric=False)
    found = gather_moments(x, layer, everywhere(x, layer), qparams=qparams, full=full)
    u = columns(x, layer)
    step, zero_point = 2.5 / 7, round(0.5 / (2.5 / 7))
    rounded = (np.clip(np.round(u.numpy() / step) + zero_point, 0, 7) - zero_point) * step
    mean, cov = plain_moments(torch.from_numpy(rounded))
    assert_near(found.mean, plain_moments(u)[0])
    assert_near(found.student_mean, mean)
    assert_near(found.cov, cov if full else cov.diagonal(dim1=1, dim2=2))
    assert (found.mean - found.student_mean).abs().max() > 0.01


@EVERY
def test_diagonal_is_the_diagonal_of_the_full_covariance(name):
    layer, x = case(name, 3.0)
    at = everywhere(x, layer)
    full, diagonal = (gather_moments(x, layer, at, qparams=None, full=full) for full in (True, False))
    assert diagonal.cov.shape == diagonal.mean.shape and full.cov.shape[1:] == 2 * full.mean.shape[1:]
    assert torch.equal(diagonal.variance, diagonal.cov)
    torch.testing.assert_close(diagonal.variance, full.variance, rtol=1e-5, atol=1e-5)
    assert torch.equal(diagonal.mean, full.mean)


@EVERY
@FULL
@pytest.mark.parametrize("num_rows", [1, 3], ids=["row by row", "three rows"])
def test_chunks_change_nothing(name, full, num_rows, monkeypatch):
    layer, x = case(name, 100.0 if name in LINEARS else 1.0)
    at = everywhere(x, layer)
    whole = gather_moments(x, layer, at, qparams=None, full=full)
    monkeypatch.setattr(column_module, "CHUNK", num_rows * whole.mean.numel())
    pieces = list(chunks(x, layer, at))
    assert len(pieces) == math.ceil(len(at) / num_rows) and torch.equal(torch.cat(pieces), columns(x, layer))
    parts = gather_moments(x, layer, at, qparams=None, full=full)
    assert parts.num_rows == whole.num_rows
    torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts.cov, whole.cov, rtol=1e-4, atol=1e-4)
    if full:
        torch.testing.assert_close(parts.scatter, whole.scatter, rtol=1e-4, atol=1e-4)


def test_input_is_only_read():
    layer, x = case("everything")
    before = x.clone()
    qparams = choose_qparams(torch.tensor([-1.0]), torch.tensor([1.0]), bits=2, symmetric=False)
    unfold(x, layer, everywhere(x, layer)).zero_()
    gather_moments(x, layer, everywhere(x, layer), qparams=qparams, full=True)
    assert torch.equal(x, before)


@FULL
@pytest.mark.parametrize("quantized", [False, True], ids=["float", "quantized"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["1x5", "linear"])
def test_input_that_is_not_finite_is_refused(name, value, quantized, full):
    layer, x = case(name)
    x.view(-1)[3] = value
    qparams = choose_qparams(torch.tensor([-1.0]), torch.tensor([1.0]), bits=8, symmetric=False)
    with pytest.raises(MomentsError, match="mean of the layer's inputs is not finite; look at the layers before it"):
        at = everywhere(x, layer)
        gather_moments(x, layer, at, qparams=qparams if quantized else None, full=full)


FC = Layer("fc", "fc", "linear")


def correlated(num_rows, taps, rank=10, seed=0):
    """Rows (r, n) of a few common causes and noise as strong, means and scales of their own; their true covariance."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(rank, taps, generator=generator) / math.sqrt(rank)
    scale, mean = 0.3 + torch.rand(taps, generator=generator), 3 * torch.randn(taps, generator=generator)
    u = torch.randn(num_rows, rank, generator=generator) @ mix + torch.randn(num_rows, taps, generator=generator)
    return u * scale + mean, (mix.T @ mix + torch.eye(taps)) * scale * scale[:, None]


def linear_moments(x, **options):
    options = {"qparams": None, "full": True, **options}
    return gather_moments(x, FC, everywhere(x, FC), **options)


def intensity(before, after):
    """The share a by which each group's covariance has moved towards its diagonal."""
    off = lambda m: torch.linalg.matrix_norm(m.cov.double() - torch.diag_embed(m.variance.double()))  # noqa: E731
    return 1 - off(after) / off(before)


def plain_intensity(u):
    """Schafer & Strimmer 2005, target D, of rows (r, n), element after element."""
    r, taps = u.shape
    centred = u.double() - u.double().mean(0)
    noise = power = 0.0
    for i in range(taps):
        for j in range(taps):
            if i != j:
                w = centred[:, i] * centred[:, j]
                noise += float(r / (r - 1) ** 3 * (w - w.mean()).square().sum())
                power += float(r / (r - 1) * w.mean()) ** 2
    return min(1.0, noise / power)


@pytest.mark.parametrize("name", ["linear", "grouped"])
def test_intensity_equals_the_paper(name):
    layer, x = case(name, 10.0 if name == "linear" else 0.0)
    x = x + 1.5 * randn(len(x), 1, *x.shape[2:], seed=1)  # a cause that all channels share
    at = everywhere(x, layer)
    found = gather_moments(x, layer, at, qparams=None, full=True)
    wanted = torch.tensor([plain_intensity(u) for u in columns(x, layer).unbind(1)]).double()
    assert bool((wanted < 0.9).all())
    assert_near(intensity(found, shrunk(found)), wanted)


def test_many_rows_hardly_shrink_few_rows_do():
    many, few = (linear_moments(correlated(*size)[0]) for size in ((16384, 100), (64, 1280)))
    assert 0 < intensity(many, shrunk(many)).item() < 0.01
    assert intensity(few, shrunk(few)).item() > 0.1
    smallest = [float(torch.linalg.eigvalsh(m.cov[0])[0] / m.variance.mean()) for m in (few, shrunk(few))]
    assert smallest[0] < 1e-4 and smallest[1] > 0.01
    assert torch.equal(shrunk(few).variance, few.variance)


@pytest.mark.parametrize(("num_rows", "taps", "rank"), [(16, 100, 2), (64, 200, 10), (64, 50, 50), (1000, 100, 10)])
def test_shrunk_covariance_is_nearer_to_the_true_one(num_rows, taps, rank):
    off = torch.zeros(2)
    for seed in range(6):
        u, true = correlated(num_rows, taps, rank, seed)
        found = linear_moments(u)
        off += torch.stack([(m.cov[0] - true).square().sum() for m in (found, shrunk(found))])
    assert off[1] < off[0]


@FULL
def test_merged_halves_are_the_whole(full):
    u, _ = correlated(80, 30)
    own = u + 0.1 * randn(80, 30)
    whole, *halves = (
        linear_moments(u[s], student_x=own[s], full=full) for s in (slice(None), slice(40), slice(40, None))
    )
    both = merged(*halves)
    assert both.num_rows == 80
    for name in ("mean", "student_mean", "cov", *(["cross"] if full else [])):
        torch.testing.assert_close(getattr(both, name), getattr(whole, name), rtol=1e-4, atol=1e-4)
    if full:  # but for the scatter, which is about the halves' own means
        torch.testing.assert_close(intensity(both, shrunk(both)), intensity(whole, shrunk(whole)), rtol=0.1, atol=0)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_intensity_does_not_depend_on_units(unit):
    u, _ = correlated(64, 100)
    small, large = (linear_moments(x) for x in (u, u * unit))
    torch.testing.assert_close(intensity(small, shrunk(small)), intensity(large, shrunk(large)), rtol=1e-4, atol=0)


def test_what_is_exact_or_a_diagonal_is_not_shrunk():
    u, _ = correlated(20, 30)
    diagonal, once = linear_moments(u, full=False), shrunk(linear_moments(u))
    assert shrunk(diagonal) is diagonal and shrunk(once) is once
    flat = shrunk(linear_moments(torch.ones(20, 30)))  # inputs that never change
    assert torch.equal(flat.cov, torch.zeros(1, 30, 30))


def test_inputs_that_are_the_same_ask_for_no_compensation():
    u, _ = correlated(64, 100)
    found = shrunk(linear_moments(u, student_x=u.clone()))
    torch.testing.assert_close(found.cross, found.cov, rtol=1e-4, atol=1e-5)
    weight = randn(1, 5, 100).double()
    torch.testing.assert_close(least_squares(weight, found, 0.01), weight, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("taps", "size"), [(1, 1), (4608, 4608), (4609, 419), (9216, 4608), (25088, 3584), (8209, 1)])
def test_blocks_are_equal_few_and_no_larger_than_stated(taps, size):
    assert block_size(taps) == size


@pytest.mark.parametrize("num_rows", [1, 10**6], ids=["row by row", "at once"])
def test_many_taps_are_moments_of_blocks(num_rows, monkeypatch):
    layer, x = case("grouped")  # 2 groups of 18 taps
    at = everywhere(x, layer)
    own = x + 0.1 * randn(*x.shape, seed=2)
    gather = lambda rows: gather_moments(x, layer, rows, qparams=None, full=True, student_x=own)  # noqa: E731
    full = gather(at)
    monkeypatch.setattr(moments, "MAX_TAPS", 7)
    monkeypatch.setattr(column_module, "CHUNK", num_rows * full.mean.numel())
    for blocks in (gather(at), merged(*(gather(half) for half in at.tensor_split(2)))):
        assert blocks.cov.shape == blocks.cross.shape == (2 * 3, 6, 6) and blocks.mean.shape == (2, 18)
        torch.testing.assert_close(blocks.variance, full.variance, rtol=1e-4, atol=1e-4)
        for i, block in enumerate(blocks.blocks()):
            taps = slice(6 * i, 6 * i + 6)
            torch.testing.assert_close(block.mean, full.mean[:, taps], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(block.cov, full.cov[:, taps, taps], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(block.cross, full.cross[:, taps, taps], rtol=1e-4, atol=1e-4)
            assert torch.equal(shrunk(block).cov, shrunk(blocks).blocks()[i].cov)


@pytest.mark.parametrize("of_student", [False, True], ids=["teacher", "student"])
def test_a_wide_layer_holds_few_pieces_at_a_time(of_student, monkeypatch):
    layer, x = convolution((3, 3), padding=(1, 1)), randn(24, 16, 8, 8)
    at, piece, taps = everywhere(x, layer), 128, 16 * 9
    monkeypatch.setattr(column_module, "CHUNK", piece * taps)
    with Alive() as alive:
        gather_moments(x, layer, at, qparams=None, full=True, student_x=x + 1 if of_student else None)
    one_piece, h = 4 * piece * taps, 8 * taps**2
    few = 3 * one_piece + 2 * h + of_student * (x.nbytes + 2 * h)
    assert alive.most < few and len(at) > 10 * piece
