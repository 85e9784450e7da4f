"""The source and the wheel, the same bytes each time: python tests/build_dist.py DIST

What git knows of is built twice, in two folders whose files have other times; both must give the same bytes. Times are
those of the last commit, or SOURCE_DATE_EPOCH.
"""
# ruff: noqa: T201  this file is a script

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def build(place: Path, epoch: int, age: int) -> dict[str, bytes]:
    """Wheel and source by their names, built from a copy whose files are so many seconds older."""
    tree, out = place / "tree", place / "out"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tree / name)
            os.utime(tree / name, (epoch - age, epoch - age))
    limits = str(ROOT / "constraints.txt")
    variables = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "PIP_CONSTRAINT": limits, "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-m", "build", "--outdir", str(out), str(tree)]
    subprocess.run(command, check=True, env=variables, stdout=subprocess.DEVNULL)
    return {
        file.name: settled(file.read_bytes(), epoch) if file.name.endswith(".tar.gz") else file.read_bytes()
        for file in out.iterdir()
    }


def settled(source: bytes, epoch: int) -> bytes:
    """The same archive in the order of its names, without times, owners and rights of this machine."""
    packed = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(source)) as before,
        gzip.GzipFile("", "wb", 9, packed, mtime=0) as squeezed,
        tarfile.open(fileobj=squeezed, mode="w", format=tarfile.PAX_FORMAT) as after,
    ):
        for member in sorted(before.getmembers(), key=lambda member: member.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            after.addfile(member, before.extractfile(member) if member.isfile() else None)
    return packed.getvalue()


def main(out: Path) -> int:
    said = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True).stdout
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or said)
    with tempfile.TemporaryDirectory() as place:
        first, second = (build(Path(place) / str(age), epoch, age) for age in (1000, 2000))
    if first != second:
        print(*(f"{name} differs when it is built again" for name in first if first[name] != second.get(name)))
        return 1
    out.mkdir(parents=True, exist_ok=True)
    for name, content in sorted(first.items()):
        (out / name).write_bytes(content)
        print(f"{hashlib.sha256(content).hexdigest()}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
