"""Look into the wheel and the source that `make dist` built, and install the wheel beside what is installed.

.venv/bin/python tests/dist.py DIST
"""
# ruff: noqa: T201  this file is a script

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
DATA = ("*.yaml", "*.safetensors", "py.typed")


def missing(wheel: Path, source: Path) -> list[str]:
    """Files of the package that the wheel lacks, and files of a clone that the source lacks."""
    files = (ROOT / "src" / "datafree").rglob("*")
    wanted = {str(f.relative_to(ROOT / "src")) for f in files if f.suffix == ".py" or any(map(f.match, DATA))}
    held = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    lacking = {"README.md", "LICENSE", "pyproject.toml"} - names
    return [f"{wheel.name} lacks {name}" for name in sorted(wanted - held)] + [
        f"{source.name} lacks {n}" for n in lacking
    ]


def installed_version(wheel: Path) -> str:
    """What `datafree --version` says in an environment of its own, with this one's packages behind it."""
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as place:

        def said(program: str, *arguments: object) -> str:
            command = [Path(place) / "bin" / program, *map(str, arguments)]
            return subprocess.run(command, env=alone, cwd=place, check=True, stdout=subprocess.PIPE, text=True).stdout

        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        said("python", "-m", "pip", "install", "--quiet", "--no-deps", wheel.absolute())
        site = next(Path(place).glob("lib/python*/site-packages"))
        (site / "behind.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
        where = said("python", "-c", "import datafree; print(datafree.__file__)").strip()
        return said("datafree", "--version").strip() if Path(where).is_relative_to(site) else f"{where}, another one"


def main(folder: Path) -> int:
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    found = missing(wheel, source)
    said = installed_version(wheel)
    if not said.endswith(wheel.name.split("-")[1]):
        found.append(f"{wheel.name} says {said!r}")
    print(*found, f"{wheel.name}: {said}; {len(found)} problems", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
