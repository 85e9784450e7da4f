"""What all tests share: one number of threads, whatever is collected.

    TEST_THREADS=4 make test                                    on four threads
    python -m pytest -n 2 --random-order-bucket=global          in another order each time
"""

from __future__ import annotations

import os

import pytest
import torch

NUM_THREADS = int(os.environ.get("TEST_THREADS", "1"))  # two on a busy machine take many times as long as one


def pytest_sessionstart():
    torch.set_num_threads(NUM_THREADS)


@pytest.fixture(autouse=True)
def same_threads():
    """A test may set another number: the next one finds what all of them start with."""
    yield
    torch.set_num_threads(NUM_THREADS)
