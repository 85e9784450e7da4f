"""Layer problems to solve, and their variants, for the tests of solve/ and allocation/."""

import math
from dataclasses import fields, replace

import pytest
import torch

from datafree.recipe import AdaRound, Gptq, Nearest, SQuant, StraightThrough
from datafree.records import InputRange, Layer, Moments, QParams, WeightSpec
from datafree.signals import SignalJob
from datafree.solve.jobs import LayerJob
from datafree.solve.rounding import rounding_method

SGD = StraightThrough(steps=60, rows=64, lr=3e-3)
ADAROUND = AdaRound(steps=60)
METHODS = pytest.mark.parametrize("method", [Nearest(), Gptq(), SGD, SQuant(), ADAROUND], ids=lambda m: m.method)
SPECS = {
    "channel": WeightSpec(4, True, False),
    "tensor": WeightSpec(4, False, False),
    "symmetric": WeightSpec(4, True, True),
    "tensor symmetric": WeightSpec(3, False, True),
    "8 bits": WeightSpec(8, True, True),
}


def convolution(kernel, kind="conv2d", **options):
    """A layer that is in no graph."""
    ones, zeros = (1,) * len(kernel), (0,) * len(kernel)
    settings = {"stride": ones, "padding": zeros, "dilation": ones} | options
    return Layer("conv", "conv", kind, kernel, **settings)


def signal_job(graph, stats, recipe, *, seed=0, competitor=None):
    """What images are moved with, in the range mean 0, deviation 1."""
    rng, unit = torch.Generator().manual_seed(seed), InputRange((0.0,), (1.0,), "a test")
    return SignalJob(graph, stats, recipe, seed, rng, (), (unit,), competitor=competitor)


def drawn_inputs(generator, groups, taps, num_rows, rank):
    """Rows (r, g, n): a few common causes, noise a tenth as strong, means and scales of their own."""
    causes = torch.randn(num_rows, groups, rank, generator=generator)
    mix = torch.randn(groups, rank, taps, generator=generator) / math.sqrt(rank)
    u = torch.einsum("rgk,gkn->rgn", causes, mix)
    u = u + 0.1 * torch.randn(num_rows, groups, taps, generator=generator)
    return u * (0.3 + torch.rand(taps, generator=generator)) + torch.randn(taps, generator=generator)


def make_job(method, *, seed=0, spec=SPECS["channel"], groups=1, rows=6, taps=20, rank=5, diagonal=False):
    """A job on random weights; the student's inputs differ a little from the teacher's."""
    generator = torch.Generator().manual_seed(seed)
    u = drawn_inputs(generator, groups, taps, 400, rank)
    student = u + 0.05 * torch.randn(u.shape, generator=generator)
    centred = (student - student.mean(0)).permute(1, 0, 2)
    cov = centred.transpose(1, 2) @ centred / len(u)
    row = rounding_method(method)
    diagonal = diagonal or row.moments == "diagonal"
    return LayerJob(
        name="block.conv",
        weight=torch.randn(groups, rows, taps, generator=generator),
        bias=torch.randn(groups * rows, generator=generator),
        moments=Moments(u.mean(0), student.mean(0), cov.diagonal(dim1=1, dim2=2) if diagonal else cov, len(u)),
        spec=spec,
        method=method,
        seed=seed,
        rows=student if row.num_rows else None,
    )


def with_covariance(job, cov):
    return replace(job, moments=replace(job.moments, cov=cov))


def assert_same_results(first, second):
    assert [r.name for r in first] == [r.name for r in second]
    for one, other in zip(first, second, strict=True):
        for field in fields(one):
            a, b = getattr(one, field.name), getattr(other, field.name)
            if isinstance(a, torch.Tensor):
                assert a.dtype == b.dtype and torch.equal(a, b), field.name
            elif isinstance(a, QParams):
                assert torch.equal(a.scale, b.scale) and torch.equal(a.zero_point, b.zero_point)
            elif field.name != "seconds":
                assert a == b, field.name


def in_blocks(job, size):
    """The job that knows H's diagonal blocks (g * b, m, m) only."""
    cut = lambda h: torch.stack([h[:, i : i + size, i : i + size] for i in range(0, h.shape[1], size)], 1).flatten(0, 1)  # noqa: E731
    moments = job.moments
    cross = None if moments.cross is None else cut(moments.cross)
    halves = job.moment_halves and tuple(replace(m, cov=cut(m.cov), cross=cut(m.cross)) for m in job.moment_halves)
    return replace(job, moments=replace(moments, cov=cut(moments.cov), cross=cross), moment_halves=halves)


def block_diagonal(job, size):
    """The job with a full H and C that are zero between blocks."""
    keep = torch.block_diag(*[torch.ones(size, size)] * (job.weight.shape[2] // size))
    masked = lambda m: replace(m, cov=m.cov * keep, cross=None if m.cross is None else m.cross * keep)  # noqa: E731
    folds = None if job.moment_halves is None else tuple(masked(m) for m in job.moment_halves)
    return replace(job, moments=masked(job.moments), moment_halves=folds)
