"""What C writes to the standard output is held back, and nothing else is."""

import os
import subprocess
import sys

from datafree.execution import silent


def test_what_c_writes_does_not_come_through(capfd):
    print("before")  # noqa: T201
    with silent():
        os.write(1, b"inside\n")
    print("after")  # noqa: T201
    assert capfd.readouterr().out == "before\nafter\n"


def test_a_process_without_standard_output_goes_on():
    code = "import os, sys\nfrom datafree.execution import silent\nos.close(1)\nwith silent():\n    pass\nos._exit(3)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 3
