"""Memory that tensors leave is used again."""

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
