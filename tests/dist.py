"""Look into the wheel and the source that `make dist` built; install the wheel, and use it outside of the repository.

.venv/bin/python tests/dist.py DIST          beside what is installed
.venv/bin/python tests/dist.py DIST --bare   with nothing around it: what it needs is installed, at constraints.txt
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


def untidy(wheel: Path, source: Path) -> list[str]:
    """Files whose times, owners or rights are of the machine that built them."""
    with tarfile.open(source) as archive:
        members = archive.getmembers()
    dates = {entry.date_time for entry in zipfile.ZipFile(wheel).infolist()}
    times = {member.mtime for member in members}
    return [f"{source.name} has files of {len(times)} times"] * (len(times) > 1) + [
        *([f"{wheel.name} has files of {len(dates)} times"] * (len(dates) > 1)),
        *(f"{source.name}: {m.name} is {m.uname}'s" for m in members if m.uid or m.gid or m.uname),
    ]


NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()
"""
USE = """
import torch
from datafree import Run, load, save
run = Run.load("run")
save(run, "net.safetensors")
x = torch.ones(1, 3, 8, 8)
with torch.no_grad():
    assert torch.equal(load("net.safetensors")(x), run.student(x))
print("the same")
"""


def installed_version(wheel: Path, *, bare: bool) -> str:
    """What `datafree --version` says in an environment of its own, after a compression there.

    Args:
        bare: whether what it needs is installed there, too; else this environment's packages lie behind it.
    """
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as place:

        def said(program: str, *arguments: object) -> str:
            command = [Path(place) / "bin" / program, *map(str, arguments)]
            return subprocess.run(command, env=alone, cwd=place, check=True, stdout=subprocess.PIPE, text=True).stdout

        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        needs = ["--constraint", ROOT / "constraints.txt"] if bare else ["--no-deps"]
        said("python", "-m", "pip", "install", "--quiet", *needs, wheel.absolute())
        site = next(Path(place).glob("lib/python*/site-packages"))
        if not bare:
            (site / "behind.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
        where = said("python", "-c", "import datafree; print(datafree.__file__)").strip()
        if not Path(where).is_relative_to(site):
            return f"{where}, another one"
        (Path(place) / "small_net.py").write_text(NET)
        asked = ["small_net:net", "--input", "1,3,8,8", "--recipe", "w8a8", "--set", "signal.images=4", "--quiet"]
        said("datafree", "compress", *asked, "--out", "run")
        assert said("python", "-c", USE).strip() == "the same", "a file is the student"
        return said("datafree", "--version").strip()


def main(folder: Path, *, bare: bool) -> int:
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    found = missing(wheel, source)
    found += untidy(wheel, source)
    said = installed_version(wheel, bare=bare)
    if not said.endswith(wheel.name.split("-")[1]):
        found.append(f"{wheel.name} says {said!r}")
    print(*found, f"{wheel.name}: {said}; {len(found)} problems", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), bare="--bare" in sys.argv[2:]))
