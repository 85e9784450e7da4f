"""What all tests share: one number of threads, and nets that are exported once.

TEST_THREADS=4 make test                                    on four threads
python -m pytest -n 2 --random-order-bucket=global          in another order each time
"""

from __future__ import annotations

import copy
import hashlib
import io
import os
import pickle
import warnings

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on a busy machine, threads that wait in a loop take minutes

import torch

NUM_THREADS = int(os.environ.get("TEST_THREADS", "1"))


def pytest_sessionstart():
    torch.set_num_threads(NUM_THREADS)


@pytest.fixture(autouse=True)
def same_threads():
    """A test may set another number: the next one finds what all of them start with."""
    yield
    torch.set_num_threads(NUM_THREADS)


class ByValue(pickle.Pickler):
    """A module as bytes that depend on its class, structure and values alone; torch's own hold addresses."""

    def __init__(self, file):
        super().__init__(file)
        self.seen = {}  # a tensor that is held twice is another net than two equal ones

    def persistent_id(self, x):
        if not isinstance(x, torch.Tensor):
            return None
        number = self.seen.setdefault(id(x), len(self.seen))
        return number, type(x), x.dtype, tuple(x.shape), x.requires_grad, x.detach().contiguous().numpy().tobytes()


class Exported:
    """What is asked of an exported program, as often as one likes: a graph with tensors of its own."""

    def __init__(self, program):
        self.graph = program.module()

    def module(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own classes warn when they are copied
            return copy.deepcopy(self.graph)


@pytest.fixture(autouse=True, scope="session")
def exported_once():
    """Half of the suite's time went into exporting nets that were exported before, equal to the last bit."""
    from datafree.graph import capture  # not above: shapes are checked in what is imported after pytest has begun

    export, known = capture._export, {}

    def remembered(model, examples):
        try:
            ByValue(stream := io.BytesIO()).dump((model, [(tuple(x.shape), x.dtype) for x in examples]))
        except (pickle.PicklingError, AttributeError, TypeError):  # a class or function of a test's own
            return export(model, examples)
        key = hashlib.sha256(stream.getvalue()).digest()
        if key not in known:
            known[key] = Exported(export(model, examples))
        return known[key]

    capture._export = remembered
    yield
    capture._export = export
