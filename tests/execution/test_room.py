"""Little memory: calls on a few images at a time, and tensors that wait in files."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import pytest
import torch

from datafree.execution import ALL_IN_MEMORY, Parts, Room, in_turn, is_in_file, put_away, room
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


def test_results_that_are_larger_than_what_is_read_are_made_of_fewer_images(tmp_path):
    seen = []
    wide = counted(lambda x: x.repeat(1, 3, 1, 1), seen)
    found = Parts(Room(4 * 12 * OF_ONE, tmp_path), 12).apply(wide, BATCH, gives=3 * BATCH[0].numel())
    assert torch.equal(found, BATCH.repeat(1, 3, 1, 1)) and seen == [4, 4, 4]


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


def test_a_file_is_read_one_entry_at_a_time_and_memory_as_it_is(tmp_path):
    x = Files(tmp_path).empty((12, 4, 8, 8), torch.float32).copy_(BATCH)
    assert is_in_file(x) and is_in_file(x[2:]) and not is_in_file(BATCH)
    parts = [*in_turn(x)]
    assert len(parts) == 12 and torch.equal(torch.cat(parts), BATCH)
    assert [*in_turn(BATCH)] == [BATCH]
    put_away(x)
    put_away(BATCH)
    assert torch.equal(x, BATCH)


def test_a_tensor_where_a_file_was_is_in_no_file(tmp_path):
    x = Files(tmp_path).empty((12, 4, 8, 8), torch.float32)
    there = x.untyped_storage().data_ptr()
    del x
    gc.collect()
    assert there not in room._FILES


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells what of a file is in memory")
def test_what_was_read_in_turn_is_out_of_memory(tmp_path):
    x = Files(tmp_path).empty((8, 2**18), torch.float32).fill_(1.0)
    put_away(x)
    held = [resident_kilobytes(x) for part in in_turn(x) if part.sum() == 2**18]
    assert len(held) == 8 and max(held) <= 2 * 1024 and resident_kilobytes(x) == 0


def resident_kilobytes(x):
    """How much of the mapping a tensor lies in is in this process's memory."""
    start = f"{x.data_ptr():x}-"
    of_mapping = Path("/proc/self/smaps").read_text().split(f"\n{start}")[1]
    return int(re.findall(r"^Rss: +(\d+) kB$", of_mapping, re.MULTILINE)[0])


def test_what_is_no_batch_is_told(tmp_path):
    parts = Parts(ALL_IN_MEMORY, 12)
    assert parts.is_batch(BATCH) and not parts.is_batch(BATCH[:3]) and not parts.is_batch(BATCH[:, 0, 0])
    assert not parts.is_batch((BATCH, BATCH))
