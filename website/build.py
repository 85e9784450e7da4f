"""Build the documentation site from docs/ into site/, and check every link in it.

    python -m website.build             # what `make docs` runs
    python -m website.build --quick     # the notebook is shown without running it

Exit code 1 and the places, where a link leads nowhere or a page would load something from the network.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys

from website.check import problems
from website.stage import ROOT, staged

STAGE, SITE = ROOT / "build" / "docs", ROOT / "site"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="do not run the notebook")
    options = parser.parse_args()
    for folder in (STAGE, SITE, ROOT / ".cache"):
        shutil.rmtree(folder, ignore_errors=True)
    for place, content in staged(run=not options.quick):
        (STAGE / place).parent.mkdir(parents=True, exist_ok=True)
        (STAGE / place).write_bytes(content)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(ROOT / "zensical.toml")]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_COLOR": "1"})
    if done.returncode:
        return done.returncode
    found = problems(SITE)
    print(*found, f"{len(list(SITE.rglob('*.html')))} pages, {len(found)} problems", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
