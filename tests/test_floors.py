"""The house: a room imports only what rooms on lower floors offer, nothing in a circle; what must not be held."""

import ast
import functools
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import datafree

ROOT = Path(datafree.__file__).parent
FLOORS = (
    "messages",
    "recipe records extras",
    "quantization execution demo",
    "graph models progress",
    "teacher signals images",
    "solve",
    "allocation student",
    "run",
    "arguments sharing",
    "pipeline export",
    "app",
    "__init__ __main__",
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "misc"}
OPTIONAL = (
    "onnx",
    "onnxscript",
    "onnxruntime",
    "typer",
    "timm",
    "ray",
    "torchvision",
    "sklearn",
    "PIL",
    "altair",
    "vl_convert",
)


def module_name(file):
    """`datafree.signals.gaussian`; a package's `__init__.py` has the package's name."""
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for file in sorted(ROOT.rglob("*.py"))}


def room(name):
    return [*name.split("."), "__init__"][1]


def imports(source, modules):
    """The modules of this package that Python text imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {member if member in modules else node.module for member in members}
    return {name for name in found if name.split(".")[0] == "datafree"}


@functools.cache
def parsed(source):
    return ast.parse(source)


def imported_names(source):
    """(module of this package, names imported from it), for every `from` import."""
    found = [n for n in ast.walk(parsed(source)) if isinstance(n, ast.ImportFrom)]
    return [(n.module, [a.name for a in n.names]) for n in found if n.module.split(".")[0] == "datafree"]


def offers(file):
    """`__all__` of a file; nothing where it has none."""
    assigned = [n for n in parsed(file.read_text()).body if isinstance(n, ast.Assign)]
    lists = [n.value for n in assigned if getattr(n.targets[0], "id", "") == "__all__"]
    return [name for found in lists for name in ast.literal_eval(found)]


@functools.cache
def arrows():
    """What every module imports."""
    return {name: imports(file.read_text(), FILES) for name, file in FILES.items()}


def test_every_module_has_a_floor():
    assert {room(name) for name in FILES} == set(FLOOR_OF)


def test_imports_point_down():
    pairs = [(name, other) for name, others in arrows().items() for other in others]
    assert [other for _, other in pairs if other not in FILES] == []
    between = [(name, other) for name, other in pairs if room(name) != room(other)]
    assert [f"{a} -> {b}" for a, b in between if FLOOR_OF[room(b)] >= FLOOR_OF[room(a)]] == []


def test_other_rooms_are_entered_by_their_door():
    """Of a package only what its `__init__` lists, of another room nothing private."""
    passed_by, not_offered = [], []
    for name, file in FILES.items():
        for module, names in imported_names(file.read_text()):
            if (
                module == "datafree" or room(module) == room(name) or room(name) == "__main__"
            ):  # loads what others leave
                continue
            if module.count(".") > 1:
                passed_by.append(f"{name} imports from {module}; take it from datafree.{room(module)}")
                continue
            listed = offers(FILES[module]) or [n for n in names if not n.startswith("_")]
            not_offered += [f"{name} imports {n}, which {module} does not offer" for n in names if n not in listed]
    assert (passed_by, not_offered) == ([], [])


def test_imports_make_no_circle():
    try:
        TopologicalSorter(arrows()).prepare()
    except CycleError as error:
        pytest.fail("imports in a circle: " + " <- ".join(error.args[1]))


@pytest.mark.parametrize(
    "source, expected",
    [
        ("import torch, datafree.graph", {"datafree.graph"}),
        ("from datafree import graph as g, Recipe", {"datafree", "datafree.graph"}),
        ("from datafree.signals import gaussian", {"datafree.signals.gaussian"}),
        ("from datafree.signals import make_signal", {"datafree.signals"}),
        ("def f():\n    if x:\n        import datafree.solve", {"datafree.solve"}),
        ("from datafreeze import layer", set()),
    ],
)
def test_imports_are_read_as_python_reads_them(source, expected):
    assert imports(source, FILES) == expected


def test_import_of_the_package_loads_nothing_optional():
    code = f"import sys, datafree; print(*[m for m in {OPTIONAL} if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_every_name_that_is_offered_is_there():
    """They are looked up when they are asked for."""
    assert datafree.ROOMS.keys() == {*datafree.__all__} <= {*dir(datafree)}
    for name in datafree.__all__:
        assert getattr(datafree, name).__module__.startswith(f"datafree.{datafree.ROOMS[name]}")
    with pytest.raises(AttributeError, match=r"module 'datafree' has no attribute 'nosuch'"):
        _ = datafree.nosuch


def test_only_the_command_line_prints():
    prints = []
    for name, file in FILES.items():
        calls = [node for node in ast.walk(parsed(file.read_text())) if isinstance(node, ast.Call)]
        prints += [name for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
    assert set(prints) == {"datafree.app.console"}


def test_aten_is_named_in_two_rooms_alone():
    by_name = {
        name for name, file in FILES.items() for n in ast.walk(parsed(file.read_text()))
        if isinstance(n, ast.Name) and n.id == "aten"
    }  # fmt: skip
    assert {name.rpartition(".")[0] for name in by_name} == {"datafree.graph", "datafree.export.onnx"}


def test_no_file_has_a_name_that_says_nothing():
    names = {path.stem for path in ROOT.rglob("*") if path.suffix == ".py" or path.is_dir()}
    assert not names & BANNED_NAMES
