"""The suite under other kernels, threads, Pythons and dependencies, one after another, and a table of what passed.

python tests/matrix.py --list                     the settings by name
python tests/matrix.py                            all of them, the whole fast suite: hours
python tests/matrix.py threads-2 oldest -- tests/quantization tests/graph

Settings that need an environment of their own make it with uv in .venv-matrix/, some gigabytes each; one that cannot be
made here is skipped, and the table says why. What pytest printed lies beside them, in NAME.log. The table is
docs/matrix.md, or --out FILE; rows of other settings stay.
"""
# ruff: noqa: T201  this file is a script

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent
PLACE = ROOT / ".venv-matrix"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
OLD = ("-W", "ignore::DeprecationWarning")  # what old packages use of new ones is none of ours
PINNED_FROM = (3, 11)  # constraints.txt holds releases that want this or later
HEAD = "| setting | passed | failed | skipped | on | commit | date (UTC) | tests |\n|---|---|---|---|---|---|---|---|\n"


@dataclass(frozen=True)
class Setting:
    """One way to run the suite.

    python: a version of its own; "" = this one.
    dependencies: "oldest" or "newest" of pyproject.toml; "" = as installed.
    """

    what: str
    variables: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    python: str = ""
    dependencies: str = ""


def settings() -> dict[str, Setting]:
    """All of them by name."""
    threads = {
        f"threads-{n}": Setting(f"{n} thread{'s' * (n > '1')}", {"TEST_THREADS": n, "OMP_NUM_THREADS": n})
        for n in "128"
    }
    avx2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
    return {
        **threads,
        "avx2": Setting("AVX2 and no more", avx2),
        "no-vectors": Setting("ATEN_CPU_CAPABILITY=default", {"ATEN_CPU_CAPABILITY": "default"}),
        "no-onednn": Setting("oneDNN (MKL-DNN) off", {"TEST_ONEDNN": "off"}),
        "random-order": Setting("in a random order", arguments=("--random-order-bucket=global",)),
        **{f"python-{v}": Setting(f"Python {v}", python=v) for v in PYTHONS},
        "oldest": Setting("the oldest dependencies that pyproject.toml names", arguments=OLD, dependencies="oldest"),
        "newest": Setting("the newest dependencies", dependencies="newest"),
    }


class SkippedError(Exception):
    """A setting that cannot be had here; says why."""


# ---- environments


def python_for(setting: Setting, name: str) -> Path:
    """The interpreter to run it with, in an environment that uv makes where it has to be.

    Raises:
        SkippedError: there is none, or it cannot be installed.
    """
    if not setting.dependencies and setting.python in ("", HERE):
        return Path(sys.executable)
    place = PLACE / name
    python = place / "bin" / "python"
    if not (place / ".installed").is_file():
        found = found_python(setting.python or HERE)
        shutil.rmtree(place, ignore_errors=True)
        _uv("venv", "--quiet", "--python", found, place)
        _uv("pip", "install", "--quiet", "--python", python, *versions(setting), "--editable", f"{ROOT}[dev]")
        (place / ".installed").touch()
    return python


def found_python(version: str) -> Path:
    """An interpreter of that version: on the path, of pyenv, or what uv finds or fetches."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for python in (shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python"))):
        said = subprocess.run([python, "--version"], capture_output=True, text=True) if python else None
        if said and said.returncode == 0 and said.stdout.startswith(f"Python {version}."):
            return Path(str(python))
    try:
        return Path(_uv("python", "find", version).strip())
    except SkippedError:
        _uv("python", "install", "--quiet", version)
        return Path(_uv("python", "find", version).strip())


def versions(setting: Setting) -> list[str]:
    """What uv is told of versions: the lowest that pyproject.toml allows, the pins, or nothing for the newest.

    A Python older than the pins are for gets the newest that there is for it.
    """
    if setting.dependencies == "oldest":
        return ["--resolution", "lowest-direct"]
    older = setting.python and tuple(map(int, setting.python.split("."))) < PINNED_FROM
    return [] if setting.dependencies == "newest" or older else ["--constraint", str(ROOT / "constraints.txt")]


def _uv(*command: object) -> str:
    """Run uv, that of this environment or of the path, with the machine's own certificates."""
    beside = Path(sys.executable).parent
    uv = shutil.which("uv", path=os.pathsep.join([str(beside), os.environ.get("PATH", "")]))
    if uv is None:
        raise SkippedError("uv is not there; make test-matrix installs it, or: pip install uv")
    variables = {**os.environ, "UV_SYSTEM_CERTS": "1"}
    done = subprocess.run([uv, *map(str, command)], capture_output=True, text=True, cwd=ROOT, env=variables)
    if done.returncode:
        why = " ".join(done.stderr.replace("|", "/").split()).replace(f"{ROOT}/", "")
        raise SkippedError(f"uv {command[0]} {command[1]} failed: {why}"[:300])
    return done.stdout


# ---- running and telling


def run(name: str, setting: Setting, tests: list[str]) -> str:
    """One row of the table."""
    try:
        python = python_for(setting, name)
    except SkippedError as reason:
        return _row(name, setting, "skipped", str(reason), "", tests)
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **setting.variables}
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *setting.arguments, *tests]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    PLACE.mkdir(exist_ok=True)
    (PLACE / f"{name}.log").write_text(done.stdout + done.stderr)
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
    print(*(line for line in lines if line.startswith(("FAILED", "ERROR"))), lines[-1], sep="\n", flush=True)
    counts = {what: int(count) for count, what in re.findall(r"(\d+) (passed|failed|skipped|errors?)", lines[-1])}
    failed = counts.get("failed", 0) + counts.get("error", 0) + counts.get("errors", 0)
    if not counts:
        failed = f"exit code {done.returncode}"
    return _row(
        name, setting, counts.get("passed", 0), failed, counts.get("skipped", 0), tests, _versions(python, variables)
    )


def _row(
    name: str, setting: Setting, passed: object, failed: object, skipped: object, tests: list[str], on: str = ""
) -> str:
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M")
    cells = (f"{name}: {setting.what}", passed, failed, skipped, on, _commit(), now)
    return f"| {' | '.join(map(str, cells))} | {' '.join(tests) or 'the fast suite'} |"


def _commit() -> str:
    """What is tested; the table itself, which changes row by row, is none of it."""
    commit = subprocess.run(["git", "describe", "--always"], cwd=ROOT, capture_output=True, text=True)
    changed = ["git", "status", "--porcelain", "--", ".", ":!docs/matrix.md"]
    dirty = subprocess.run(changed, cwd=ROOT, capture_output=True, text=True).stdout
    return commit.stdout.strip() + ("-dirty" if dirty else "")


def _versions(python: Path, variables: dict[str, str]) -> str:
    """Of Python, torch and numpy, and what torch's kernels use under the setting."""
    code = "import platform, torch, numpy; print(f'Python {platform.python_version()}, torch {torch.__version__}, '"
    code += "f'numpy {numpy.__version__}, {torch.backends.cpu.get_cpu_capability()}')"
    return subprocess.run([str(python), "-c", code], env=variables, capture_output=True, text=True).stdout.strip()


def write(rows: dict[str, str], file: Path) -> None:
    """The table, with rows of other settings as they were."""
    before = file.read_text().splitlines() if file.is_file() else []
    known = {line[2:].partition(":")[0]: line for line in before if line.startswith("| ") and ": " in line}
    table = {**known, **rows}
    order = [name for name in settings() if name in table]
    text = "# Where the tests pass\n\nWritten by `make test-matrix` ([tests/matrix.py](../tests/matrix.py)).\n\n"
    file.write_text(text + HEAD + "\n".join(table[name] for name in order) + "\n")


def main(arguments: list[str]) -> int:
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="settings; all of them where none is named")
    parser.add_argument("--list", action="store_true", help="print the settings and end")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "matrix.md", metavar="FILE", help="the table")
    asked, tests = parser.parse_args(arguments[:split]), arguments[split + 1 :]
    known = settings()
    if asked.list:
        print(*(f"{name:<14} {setting.what}" for name, setting in known.items()), sep="\n")
        return 0
    if unknown := [name for name in asked.names if name not in known]:
        parser.error(f"no setting is called {unknown[0]!r}; there are {', '.join(known)}")
    print(f"datafree {metadata.version('datafree')}", flush=True)
    rows = {}
    for name in asked.names or known:
        print(f"== {name}", flush=True)
        rows[name] = run(name, known[name], tests)
        write(rows, asked.out)
        print(rows[name], flush=True)
    return 1 if any(row.split(" | ")[2] != "0" and row.split(" | ")[1] != "skipped" for row in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
