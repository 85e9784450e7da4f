"""What a user has to trust: no socket is opened, every pin has its hash, a release is the same bytes each time."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import audit
import build_dist
import hashes

ROOT = Path(__file__).parent.parent

WATCHED = """
import json, os, sys
seen = []
def watch(event, args):
    if event.split(".")[0] in ("socket", "urllib", "http", "ftplib", "smtplib", "webbrowser"):
        seen.append(event)
sys.addaudithook(watch)

def sockets():
    if not os.path.isdir("/proc/self/fd"):
        return 0
    found = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
        except OSError:
            pass
    return found

before = sockets()
import datafree
if len(sys.argv) > 1:
    from datafree.app.cli import main
    for arguments in json.loads(sys.argv[1]):
        assert main(arguments) == 0, arguments
print(json.dumps([seen, sockets() - before]))
"""
NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()
"""
ASKED = ["net_of_wires:net", "--input", "1,3,8,8", "--set", "signal.images=4", "--quiet"]
COMMANDS = [
    ["compress", *ASKED, "--recipe", "w8a8", "--out", "run"],
    ["export", "run", "net.onnx", "--quiet"],
    ["compress", *ASKED, "--recipe", "w4a8", "--set", "signal.steps=2", "--out", "net.safetensors"],
    ["inspect", "net_of_wires:net", "--input", "1,3,8,8", "--quiet"],
]


@pytest.mark.parametrize(
    "commands",
    [pytest.param(None, id="importing", marks=pytest.mark.slow), pytest.param(COMMANDS, id="compressing")],
)
def test_no_socket_is_opened(commands, tmp_path):
    (tmp_path / "net_of_wires.py").write_text(NET)
    asked = [] if commands is None else [json.dumps(commands)]
    paths = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *asked], cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[], 0]


def test_what_is_watched_for_is_seen(tmp_path):
    code = WATCHED.replace("import datafree", "import socket; held = socket.socket()")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    seen, opened = json.loads(done.stdout)
    assert "socket.__new__" in seen and opened == (1 if Path("/proc/self/fd").is_dir() else 0)


def test_every_pin_has_hashes_but_torch_s():
    hashed = hashes.HASHED.read_text()
    wanted = {n: v for n, v in hashes.pins(hashes.PINS.read_text()).items() if n not in hashes.UNHASHED}
    assert hashes.pins(hashed) == wanted
    for entry in re.split(r"\n(?=\S)", hashed.partition("\n# pip install")[2].partition("\n")[2].strip()):
        assert re.fullmatch(r"\S+==\S+( \\\n    --hash=sha256:[0-9a-f]{64})+", entry.strip()), entry


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-hashed.txt"])
def test_pins_name_no_address(name):
    assert not re.search(r"://|--(extra-)?index-url|--find-links|@", (ROOT / name).read_text())


@pytest.mark.parametrize(
    "code, said, wanted",
    [
        (0, "No known vulnerabilities found", (0, "no known vulnerability")),
        (1, "Found 1 known vulnerability\nName Version ID Fix Versions", (1, "these are known; raise the pins, then")),
        (1, "ServiceError: Could not connect", (3, "not audited: the database of vulnerabilities cannot be reached")),
        (2, "usage: pip-audit", (3, "not audited: pip-audit failed")),
    ],
)
def test_an_audit_says_what_it_found_or_that_nobody_was_asked(code, said, wanted):
    exit_code, line = audit.verdict(code, said)
    assert exit_code == wanted[0] and line.startswith(wanted[1])


def archive(names, mtime, owner):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as file:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.uid, member.uname, member.mode = 3, mtime, owner, f"user{owner}", 0o640
            file.addfile(member, io.BytesIO(b"abc"))
    return packed.getvalue()


def test_a_source_is_the_same_whoever_packs_it():
    first, second = archive(["x/b", "x/a"], 5, 1000), archive(["x/a", "x/b"], 77, 0)
    assert first != second
    settled = build_dist.settled(first, 1234)
    assert settled == build_dist.settled(second, 1234) != build_dist.settled(second, 1235)
    with tarfile.open(fileobj=io.BytesIO(settled)) as file:
        assert [(m.name, m.mtime, m.uid, m.uname, m.mode) for m in file] == [
            ("x/a", 1234, 0, "", 0o644), ("x/b", 1234, 0, "", 0o644),
        ]  # fmt: skip
        assert file.extractfile("x/a").read() == b"abc"
