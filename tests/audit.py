"""Known vulnerabilities of what constraints-hashed.txt names: python tests/audit.py PIP-AUDIT

Exit codes: 0 none is known, 1 some are, 3 nobody could be asked.
"""
# ruff: noqa: T201  this file is a script

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PINS = Path(__file__).parent.parent / "constraints-hashed.txt"
NOBODY = ("ServiceError", "ConnectionError", "Max retries", "Connection", "ProxyError", "SSLError", "Temporary failure")


def verdict(code: int, said: str) -> tuple[int, str]:
    """Exit code and line for what pip-audit ended with."""
    if code == 0:
        return 0, "no known vulnerability"
    if "vulnerabilit" in said and "Fix Versions" in said:
        return 1, "these are known; raise the pins, then make hashes"
    if any(word in said for word in NOBODY):
        return 3, "not audited: the database of vulnerabilities cannot be reached from here"
    return 3, "not audited: pip-audit failed"


def main(program: str) -> int:
    command = [program, "--progress-spinner", "off", "--disable-pip", "--require-hashes", "--requirement", str(PINS)]
    done = subprocess.run(command, capture_output=True, text=True)
    code, line = verdict(done.returncode, done.stdout + done.stderr)
    if code:
        print("\n".join((done.stdout + done.stderr).strip().splitlines()[-40:]))
    print(f"{line} ({PINS.name})")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
