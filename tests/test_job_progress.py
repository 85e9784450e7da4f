"""How far a job is: one share of the whole, that never falls; lines where there is no terminal."""

import io
import time
from contextlib import contextmanager
from threading import Event

import pytest
from rich.console import Console

from datafree import Recipe, compress
from datafree.execution import CHOOSING, MAKING_IMAGES, SOLVING, ExpectedWork, add_macs
from datafree.progress import JobProgress, duration
from nets import NETS

NOWHERE = Console(file=io.StringIO())
PLAN = ExpectedWork(forward=10**9, num_layers=2, phases={MAKING_IMAGES: 4 * 10**9, SOLVING: 2 * 10**9})


@contextmanager
def planned(after=None):
    with JobProgress(after=after, console=NOWHERE) as job:
        job.on_plan(PLAN)
        yield job


def test_the_first_line_counts_from_when_the_command_began():
    said = Event()
    with JobProgress(console=NOWHERE, say=lambda line: said.set(), every=3600.0, begun=time.monotonic() - 3600):
        assert said.wait(60)


def test_nothing_is_known_before_the_plan():
    with JobProgress(console=NOWHERE) as job:
        assert job.share is None


def test_shares_are_of_all_phases():
    """Reading is worth 2, images 4, layers 2 and as much again, what follows 2: 12 in all."""
    with planned({"afterwards": 2}) as job:
        shares = [job.share]
        for what, done, total in [(MAKING_IMAGES, 1, 4), (MAKING_IMAGES, 4, 4), (SOLVING, 0, 2), (SOLVING, 1, 2)]:
            job.on_step(what, done, total)
            shares.append(job.share)
        add_macs(10**9)
        shares.append(job.share)
        job.on_step("afterwards", 0, 0)
        shares.append(job.share)
    assert shares == pytest.approx([2 / 12, 3 / 12, 6 / 12, 6 / 12, 7 / 12, 8 / 12, 10 / 12])


def test_a_phase_that_takes_more_than_was_thought_waits_at_its_end():
    with planned() as job:
        job.on_step(SOLVING, 0, 2)
        add_macs(10**12)
        assert job.share == 0.99
        job.on_step("a part of it", 0, 0)
        assert job.share == 0.99


@pytest.mark.parametrize(
    "settings, asked",
    [
        ([], {SOLVING}),
        (["prune={sparsity: 0.5}"], {CHOOSING, SOLVING}),
        (["signal={kind: matched, steps: 3, images: 2}"], {MAKING_IMAGES, SOLVING}),
    ],
)
def test_the_share_of_a_compression_never_falls(settings, asked):
    model, inputs = NETS["residual"]()
    seen = []
    with JobProgress(console=NOWHERE) as job:

        def on_step(what, done, total):
            job.on_step(what, done, total)
            seen.append((what, job.share))

        recipe = Recipe.preset("w8a8").updated(["signal.images=4", *settings])
        compress(model, recipe, inputs, on_step=on_step, on_plan=job.on_plan)
    phases, shares = zip(*seen, strict=True)
    assert (set(phases), shares[-1], list(shares)) == (asked, 0.99, sorted(shares))


def test_lines_where_there_is_no_terminal():
    said = []
    with JobProgress("w8a8: ", console=NOWHERE, say=said.append, every=0.001) as job:
        job.on_plan(PLAN)
        job.on_step(MAKING_IMAGES, 2, 4)
        count = len(said)
        while len(said) < count + 2:
            time.sleep(0.001)
    assert said[-1] == "w8a8: making images 2/4, 40 % of all, 0 s, about 0 s left"


@pytest.mark.parametrize("seconds, text", [(9.4, "9 s"), (65.0, "1:05 min"), (7830.0, "2:10 h")])
def test_durations(seconds, text):
    assert duration(seconds) == text
