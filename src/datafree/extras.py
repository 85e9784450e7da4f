"""What installs the optional packages."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2]


def install(extra: str, *, sources: Path = SOURCES) -> str:
    """The command that installs an extra where datafree runs: from its clone, if it lies in one.

    Args:
        extra: a name in pyproject.toml's optional dependencies.
        sources: the folder above src/ of a clone; of an installed package, one without a pyproject.toml.
    """
    if not (sources / "pyproject.toml").is_file():
        return f'{_pip()} install "datafree[{extra}]"'
    return f'{_pip()} install -e "{"." if sources == Path.cwd() else sources}[{extra}]"'


def _pip() -> str:
    """`pip` where that is python's own."""
    found = shutil.which("pip")
    is_own = found is not None and Path(found).parent == Path(sys.executable).parent
    return "pip" if is_own else f"{sys.executable} -m pip"
