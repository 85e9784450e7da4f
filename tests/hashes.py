"""constraints.txt with the hashes of all files of each version, into constraints-hashed.txt: python tests/hashes.py UV

No address of a package index is written. torch and torchvision are left out: their CPU wheels come from other places
than PyPI, with other bytes; they are installed at their versions before.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PINS, HASHED = ROOT / "constraints.txt", ROOT / "constraints-hashed.txt"
UNHASHED = ("torch", "torchvision")
HEAD = """# Written by `make hashes` from constraints.txt. `make install-hashed` takes torch and torchvision first, then
# pip install --require-hashes --no-deps --requirement constraints-hashed.txt
"""


def pins(text: str) -> dict[str, str]:
    """Versions by name, in lower case with dashes."""
    found = re.findall(r"^([\w.-]+)==([^\s;\\]+)", text, re.MULTILINE)
    return {name.lower().replace("_", "-").replace(".", "-"): version for name, version in found}


def main(uv: str) -> int:
    wanted = {name: version for name, version in pins(PINS.read_text()).items() if name not in UNHASHED}
    python = ".".join(map(str, sys.version_info[:3]))
    with tempfile.TemporaryDirectory() as place:
        asked, out = Path(place) / "pins.txt", Path(place) / "hashed.txt"
        asked.write_text("".join(f"{name}=={version}\n" for name, version in wanted.items()))
        options = ["--quiet", "--no-deps", "--generate-hashes", "--no-header", "--no-annotate", "--native-tls"]
        command = [uv, "pip", "compile", *options, "--python-version", python, str(asked), "--output-file", str(out)]
        subprocess.run(command, check=True)
        HASHED.write_text(HEAD + out.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
