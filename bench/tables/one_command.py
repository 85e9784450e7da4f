"""`datafree compress FILE --out FILE`, as a user types it, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def compress_file(source: Path, target: Path, *words: object) -> None:
    """Run it with the preset w8a8 on one thread, and further words.

    Raises:
        ValueError: what it says.
    """
    command = [Path(sys.executable).with_name("datafree"), "compress", source, "--out", target]
    command += ["--recipe", "w8a8", "--threads", 1, *words]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or "no message").splitlines()[-1]
        raise ValueError(said.replace(f"{target.parent}/", ""))
