"""The command that installs what is optional: one that works where datafree lies."""

import re
import sys
from pathlib import Path

import pytest

from datafree import extras
from datafree.extras import install

ROOT = Path(__file__).parent.parent


def extras_offered():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.fixture
def pip(monkeypatch, tmp_path):
    """python's own pip is the one that is found first."""
    (tmp_path / "bin").mkdir()
    for name in ("pip", "python"):
        (tmp_path / "bin" / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def test_of_a_clone_it_installs_the_clone(pip, tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    assert install("onnx", sources=tmp_path) == f'pip install -e "{tmp_path}[onnx]"'
    monkeypatch.chdir(tmp_path)
    assert install("onnx", sources=tmp_path) == 'pip install -e ".[onnx]"'


def test_of_an_installed_package_it_names_the_package(pip, tmp_path):
    assert install("onnx", sources=tmp_path) == 'pip install "datafree[onnx]"'


def test_a_pip_that_is_not_pythons_own_is_not_named(pip, tmp_path, monkeypatch):
    """`.venv/bin/datafree` run without activating .venv: `pip` alone would install elsewhere."""
    monkeypatch.setattr(sys, "executable", "/elsewhere/bin/python")
    assert install("onnx", sources=tmp_path) == '/elsewhere/bin/python -m pip install "datafree[onnx]"'


def test_sources_are_those_of_this_clone():
    assert Path(extras.__file__).parents[2] == extras.SOURCES


def test_extra_all_holds_what_a_user_may_want():
    offered = extras_offered()
    named = offered["all"][0].removeprefix("datafree[").removesuffix("]").split(",")
    assert {*named} == offered.keys() - {"all", "dev", "docs", "ray"}  # 70 MB


def test_every_extra_that_a_message_names_is_there():
    offered = extras_offered()
    sources = "".join(file.read_text() for file in (ROOT / "src").rglob("*.py"))
    named = {*re.findall(r"install\('(\w+)'\)", sources)}
    assert named == {"models", "onnx", "demo", "budget", "report", "ray"} and named <= offered.keys()
