"""Run a student in torch.compile, as int8 kernels on x86: python examples/torch_compile.py [RUN_DIR]

Without a directory: the demo network at w8a8, on digits.
"""

import os
import shutil
import sys

import torch
import torch._inductor.config as inductor

from parity import compare, open_run

if __name__ == "__main__":
    if not shutil.which(os.environ.get("CXX", "g++")):
        print("skipped: no C++ compiler is installed; apt install g++, or name another one in CXX")
        sys.exit(0)
    run, images = open_run(sys.argv[1:])
    inductor.freezing = True  # weights become constants, which the int8 kernels pack
    sys.exit(compare(torch.compile(run.student), run, images))
