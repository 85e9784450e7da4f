"""Run the code of README.md: every python block in one namespace, every sh block but those that set the machine up.

    .venv/bin/python tests/readme.py [FILE.md]

Works in a temporary directory, which both kinds of blocks share. A python block that begins with "# file: NAME.py" is
written there under this name, for those after it to import. Exit code 1 if any block failed.
"""
# ruff: noqa: T201  this file is a script

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any, NamedTuple

README = Path(__file__).parent.parent / "README.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# file: (\w+\.py)\n")
SET_UP = re.compile(r"^\s*(git clone|make)\b", re.MULTILINE)


class Block(NamedTuple):
    language: str
    text: str
    line: int  # of its first line of code, from 1


def blocks(markdown: str) -> list[Block]:
    """All fenced blocks, in order."""
    return [Block(m[1], m[2], markdown.count("\n", 0, m.start()) + 2) for m in FENCE.finditer(markdown)]


def runnable(block: Block) -> bool:
    """Python, and shell that needs no clone and no make."""
    return block.language == "python" or (block.language == "sh" and not SET_UP.search(block.text))


def run_python(block: Block, namespace: dict[str, Any]) -> str | None:
    """What it printed and the traceback if it fails, None if not; of a file, nothing yet."""
    said = io.StringIO()
    if file := FILE.match(block.text):
        Path(file[1]).write_text(block.text)
        return None
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = compile("\n" * (block.line - 1) + block.text, "README.md", "exec")
            exec(code, namespace)
    except (Exception, SystemExit):
        return said.getvalue() + traceback.format_exc()
    return None


def run_shell(block: Block) -> str | None:
    """What it printed if it fails, None if not; `datafree` and `python` are those that run this script."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return f"{done.stdout}exit code {done.returncode}\n" if done.returncode else None


def main(arguments: list[str]) -> int:
    file = Path(arguments[0]).absolute() if arguments else README
    counts = {True: 0, False: 0}
    namespace: dict[str, Any] = {"__name__": "readme"}
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        sys.path.insert(0, place)
        try:
            for block in filter(runnable, blocks(file.read_text())):
                trouble = run_python(block, namespace) if block.language == "python" else run_shell(block)
                first = next((line for line in block.text.splitlines() if line.strip()), "")
                print(f"{file.name}:{block.line} {first}: {'failed' if trouble else 'ok'}", flush=True)
                print(trouble or "", end="", flush=True)
                counts[trouble is None] += 1
        finally:
            sys.path.remove(place)
            os.chdir(here)
    print(f"{counts[True]} passed, {counts[False]} failed")
    return 1 if counts[False] or not counts[True] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
