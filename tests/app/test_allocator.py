"""Memory that tensors leave is used again, or goes back where there is a limit."""

import json
import os
import subprocess
import sys

import pytest

TOLD = "from datafree.app.allocator import keep_freed_memory\nprint(int(keep_freed_memory()))"
MEASURED = """
import json, resource, torch
from datafree.app.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**24)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plain, told = faults(), keep_freed_memory()
faults()
print(json.dumps([plain, told, faults()]))
"""


def printed(code, **more):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | more
    done = subprocess.run([sys.executable, "-c", code], env=environment, text=True, capture_output=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="resource counts pages on Linux")
def test_the_same_pages_serve_again():
    plain, told, later = printed(MEASURED)
    if not told or plain < 20_000:
        pytest.skip("no glibc, or the system gives pages of its own size")
    assert later < plain / 10


def test_what_the_environment_says_counts():
    assert printed(TOLD, MALLOC_ARENA_MAX="4") == 0


LEFT = """
import json, re, torch
from datafree.app.allocator import give_back_freed_memory

def held():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])

def of_many():
    before, tensors = held(), [torch.ones(2**21) for _ in range(20)]  # 8 MB each
    kept = tensors[-1]
    del tensors
    return held() - before - 8 * 1024

torch.ones(2**22)  # 16 MB: from now on glibc keeps what is smaller
told = give_back_freed_memory()
of_many()
print(json.dumps([told, of_many()]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells what a process holds")
def test_under_a_limit_what_is_freed_goes_back():
    told, left = printed(LEFT)
    if not told:
        pytest.skip("no glibc")
    assert left < 8 * 1024  # kilobytes, of 160 MB
