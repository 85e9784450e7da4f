"""What a process has taken is its own; what is freed goes back to the system when it is asked for."""

import subprocess
import sys

import pytest
import torch

HELD = """
import re, torch
from datafree.execution import give_back_memory

def held():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])

torch.ones(2**22)  # 16 MB: from now on glibc keeps what is smaller
before, tensors = held(), [torch.ones(2**21) for _ in range(20)]  # 8 MB each
kept = tensors[-1]
del tensors
free = held() - before - 8 * 1024
give_back_memory()
print(free, held() - before - 8 * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells what a process holds")
def test_what_lies_free_between_tensors_goes_back():
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    if before < 80 * 1024:
        pytest.skip("this C library keeps nothing")
    assert after < before / 4


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel's own figure is taken")
def test_the_peak_is_not_that_of_the_program_that_started_it():
    """The kernel's ru_maxrss begins at the size of the process that forked."""
    here = torch.ones(2**28)  # 1 GB
    code = "import sys; from datafree.execution import peak_memory; print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < here.nbytes
