"""Run directories: `Run.load`, one file altered. An input is the file's name, a line, its content."""

from __future__ import annotations

import functools
import json
import random
import shutil
import tempfile
from pathlib import Path

from fuzz import faults
from fuzz.harness import Target, fuzz, instrumented

with instrumented():
    from datafree.run import Run, RunError
    from fuzz.networks import run

FILES = ("summary.json", "recipe.yaml", "student.json", "teacher.json", "student.safetensors", "teacher.safetensors",
         "signal.safetensors", "layers/0000.safetensors", "layers/0001.safetensors")  # fmt: skip


@functools.cache
def whole() -> Path:
    """A run directory that is as it was written, until this process ends."""
    place = Path(tempfile.mkdtemp(prefix="fuzz-run-"))
    run().save(place / "run")
    return place / "run"


def seeds() -> list[bytes]:
    found = [f"{name}\n".encode() + (whole() / name).read_bytes() for name in FILES]
    graph = (whole() / "student.json").read_text()
    enum = json.dumps({"__enum__": True, "fqn": "antigravity:x", "name": "x"})
    factory = {"default_factory_module": "this", "default_factory_name": "x", "dict_context": []}
    harm = [
        with_inputs(graph, {"type": "builtins.tuple", "context": enum, "children_spec": []}),
        with_inputs(graph, {"type": "collections.defaultdict", "context": factory, "children_spec": []}),
        graph.replace("aten.conv2d.default", "aten.save.default"),
        '{"format": 1, "nodes": ' + "[" * 100_000,
        '{"format": 1, "nodes": [' + '{"a":' * 20_000,
        '{"format": 1' + "0" * 5000 + "}",
    ]
    return found + [b"student.json\n" + text.encode() for text in harm] + [b"summary.json\n" + b"[" * 100_000]


def with_inputs(graph: str, spec: dict) -> str:
    """The same graph with inputs that are nested so."""
    content = json.loads(graph)
    content["inputs"]["spec"] = json.dumps([1, spec])
    return json.dumps(content)


def read(data: bytes, folder: Path) -> object:
    name, content = split(data)
    shutil.copytree(whole(), folder / "run")
    (folder / "run" / name).write_bytes(content)
    return repr(Run.load(folder / "run"))


def split(data: bytes) -> tuple[str, bytes]:
    """The file and its content; the first file where the name is no file's."""
    first, _, content = data.partition(b"\n")
    name = first.decode(errors="replace")
    return (name, content) if name in FILES else (FILES[2], data)


def fault(data: bytes, dice: random.Random) -> bytes:
    name, content = split(data)
    kinds = {".json": faults.of_json, ".yaml": faults.of_text, ".safetensors": faults.of_safetensors}
    return f"{name}\n".encode() + kinds[Path(name).suffix](content, dice)


TARGET = Target("runs", seeds, read, (RunError,), fault)

if __name__ == "__main__":
    fuzz(TARGET)
