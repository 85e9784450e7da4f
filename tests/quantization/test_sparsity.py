"""Masks: the lowest scores go, as many as asked; n:m patterns against plain loops."""

import pytest
import torch

from datafree.quantization.sparsity import from_cells, in_cells, without_least

PATTERNS = [(2, 4, 9), (1, 4, 1), (1, 2, 3), (3, 6, 1), (4, 8, 2)]


def scores(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shape_of(pattern):
    """(groups, rows, taps) with three cells at each place of the kernel."""
    _, m, places = pattern
    return 2, 3, 3 * m * places


@pytest.mark.parametrize("shape", [(1, 6, 20), (3, 2, 9), (4, 1, 1)], ids=["all", "grouped", "one tap"])
def test_exactly_the_lowest_go(shape):
    score = scores(shape)
    size = score.numel()
    for count in (0, 1, size // 2, size - 1, size):
        keep = without_least(score, count, None)
        assert keep.dtype == torch.bool and keep.shape == score.shape
        gone = set(score.flatten().argsort()[:count].tolist())
        assert {i for i, kept in enumerate(keep.flatten().tolist()) if not kept} == gone


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_of_equal_scores_as_many_go_as_asked(value):
    score = torch.full((2, 3, 5), value)
    assert [int((~without_least(score, n, None)).sum()) for n in (0, 7, 30)] == [0, 7, 30]


def plain_pattern(score, n, m, places):
    """The n:m mask of one row (taps,), element by element: of each cell the n largest stay."""
    keep = [False] * len(score)
    channels = len(score) // places
    for place in range(places):
        for first in range(0, channels, m):
            cell = [channel * places + place for channel in range(first, first + m)]
            for tap in sorted(cell, key=lambda tap: score[tap], reverse=True)[:n]:
                keep[tap] = True
    return keep


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_largest_of_every_cell_stay(pattern):
    n, m, places = pattern
    score = scores(shape_of(pattern))
    keep = without_least(score, score.numel() // m * (m - n), pattern)
    for row, kept in zip(score.flatten(0, 1).tolist(), keep.flatten(0, 1).tolist(), strict=True):
        assert kept == plain_pattern(row, n, m, places)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_on_the_way_no_cell_loses_more_than_it_may(pattern):
    n, m, _ = pattern
    score = scores(shape_of(pattern), seed=1)
    most = score.numel() // m * (m - n)
    for count in (1, most // 3, most - 1):
        keep = without_least(score, count, pattern)
        assert int((~keep).sum()) == count
        assert int(in_cells(keep.int(), pattern).sum(3).min()) >= n
        highest_gone = score[~keep].max()
        stay = in_cells(keep.int(), pattern)
        may = from_cells((stay.sum(3, keepdim=True) > n) * stay, pattern)  # cells of n lose no more
        assert score[may > 0].min() > highest_gone


def test_cells_are_neighbouring_channels_at_one_place():
    """A convolution's weight (C_out, C_in, kh, kw), unfolded to taps (channel, row, column)."""
    weight = torch.arange(2 * 8 * 3 * 3).view(2, 8, 3, 3).float()
    cells = in_cells(weight.reshape(1, 2, -1), (2, 4, 9))
    assert cells.shape == (1, 2, 2, 4, 9)
    for cell in range(2):
        for place in range(9):
            expected = weight[1, 4 * cell : 4 * cell + 4, place // 3, place % 3]
            assert torch.equal(cells[0, 1, cell, :, place], expected)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
def test_from_cells_undoes_in_cells(pattern, dtype):
    x = torch.arange(torch.Size(shape_of(pattern)).numel()).view(shape_of(pattern)).to(dtype)
    cells = in_cells(x, pattern)
    assert cells.shape[3:] == pattern[1:] and torch.equal(from_cells(cells, pattern), x)
