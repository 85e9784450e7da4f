"""Little memory: calls on a few images at a time, and tensors that wait in files."""

from __future__ import annotations

import gc

import pytest
import torch

from datafree.execution import ALL_IN_MEMORY, Parts, Room
from datafree.execution.room import Files

BATCH = torch.randn(12, 4, 8, 8, generator=torch.Generator().manual_seed(0))
OF_ONE = BATCH[0].numel() * 4


def counted(function, seen):
    def run(*some):
        seen.append(len(some[0]))
        return function(*some)

    return run


@pytest.mark.parametrize("images, sizes", [(1, [1] * 12), (5, [5, 5, 2]), (100, [12])])
def test_parts_are_the_whole_and_no_larger_than_the_room(images, sizes, tmp_path):
    seen = []
    parts = Parts(Room(4 * images * OF_ONE, tmp_path), 12)
    found = parts.apply(counted(lambda x: 2 * x[:, :3] + 1, seen), BATCH)
    assert torch.equal(found, 2 * BATCH[:, :3] + 1) and seen == sizes


def test_several_batches_share_the_room(tmp_path):
    seen = []
    found = Parts(Room(8 * 3 * OF_ONE, tmp_path), 12).apply(counted(torch.add, seen), BATCH, BATCH + 1)
    assert torch.equal(found, BATCH + (BATCH + 1)) and seen == [3] * 4


def test_without_a_limit_nothing_is_done_in_parts():
    seen, parts = [], Parts(ALL_IN_MEMORY, 12)
    assert torch.equal(parts.apply(counted(torch.neg, seen), BATCH), -BATCH) and seen == [12]
    assert parts.keep(BATCH) is BATCH


def test_what_is_large_waits_in_a_file_and_what_is_small_does_not(tmp_path):
    parts = Parts(Room(8 * BATCH.numel() * 4 - 1, tmp_path), 12)
    kept = parts.keep(BATCH)
    assert torch.equal(kept, BATCH) and kept.data_ptr() != BATCH.data_ptr()
    assert parts.keep(kept[:, :2]).data_ptr() == kept.data_ptr()  # it lies there already
    small = BATCH[:4].clone()
    assert parts.keep(small) is small


def test_files_keep_what_was_written_when_it_is_put_away(tmp_path):
    files = Files(tmp_path)
    x = files.empty((12, 4, 8, 8), torch.float32).copy_(BATCH)
    files.put_away()
    assert torch.equal(x, BATCH) and files.holds(x) and files.holds(x[2:]) and not files.holds(BATCH)
    assert [*tmp_path.iterdir()] == []  # they have no names
    del x
    gc.collect()
    files.put_away()
    assert not files._maps


def test_what_is_no_batch_is_told(tmp_path):
    parts = Parts(ALL_IN_MEMORY, 12)
    assert parts.is_batch(BATCH) and not parts.is_batch(BATCH[:3]) and not parts.is_batch(BATCH[:, 0, 0])
    assert not parts.is_batch((BATCH, BATCH))
