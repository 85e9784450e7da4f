"""Digests of what the package makes, for changes that should change no result.

    python tests/digests.py --write before.json      # every preset on the demo network and on seven nets: minutes
    python tests/digests.py --compare before.json    # exit code 1, and a line for each that differs

A digest tells values, not names: integers, scales, ranges and biases of the student, its answers, the figures of the
summary, the bytes of the packed file and of the exported ONNX graph. Images and steps are few. Bits depend on the
processor, so both runs are made on one machine; nothing is kept in the repository.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, fx

from datafree import Recipe, Run, compress, export_onnx, load_model, save
from datafree.recipe import presets

sys.path.insert(0, str(Path(__file__).parent))
from nets import NETS

SUBJECTS = (
    "demo", "residual", "depthwise inverted residual", "grouped", "concat", "squeeze and excitation", "shared module",
    "linear after flatten",
)  # fmt: skip
FEW = {"signal.steps": 2, "solve.steps": 2, "solve.rows": 32, "prune.steps": 2}
SPENT = ("seconds", "peak_memory_bytes")  # of the summary, never the same twice


def digest(name: str, preset: str, seed: int = 0) -> dict[str, str]:
    """Digests of one network and preset: of the student, the summary and the two kinds of file."""
    torch.set_num_threads(1)
    model, inputs = load_model("demo") if name == "demo" else NETS[name]()
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    run = compress(model, few(Recipe.preset(preset)), inputs, seed=seed)
    figures = {k: v for k, v in vars(run.summary).items() if k not in SPENT}
    found = {"student": _hash(_values(run.student, inputs)), "summary": _hash([repr(sorted(figures.items()))])}
    with tempfile.TemporaryDirectory() as folder:
        for kind, suffix, write in (("onnx", ".onnx", export_onnx), ("packed", ".safetensors", save)):
            found[kind] = _file(run, write, Path(folder) / f"net{suffix}")
    return found


def few(recipe: Recipe) -> Recipe:
    """The recipe with few images, rows and steps, where it has any."""
    sections = {name: getattr(recipe, name) for name in ("signal", "solve", "prune")}
    there = [f"{k}={v}" for k, v in FEW.items() if hasattr(sections[k.split(".")[0]], k.split(".")[1])]
    return recipe.updated(["signal.images=4", *there])


def _values(student: fx.GraphModule, inputs: tuple[Tensor, ...]) -> Iterator[Tensor | str]:
    """All that the student computes with, in order, and what it answers."""
    state = dict(student.state_dict(keep_vars=True))
    for node in student.graph.nodes:
        if node.op == "get_attr" and node.target in state:
            yield state[node.target]
        elif node.op == "call_function" and "quantize" in str(node.target):
            yield repr([a for a in node.args if not isinstance(a, fx.Node)])
    with torch.no_grad():
        answer = student(*(torch.linspace(-2, 2, x.numel()).sin().view(x.shape) for x in inputs))
    yield from [answer] if isinstance(answer, Tensor) else torch.utils._pytree.tree_leaves(answer)


def _file(run: Run, write, path: Path) -> str:
    """Of a file's bytes; or what its exporter says."""
    try:
        write(run, path)
    except ValueError as error:
        return f"{type(error).__name__}: {error}".replace(str(path.parent), "")
    if path.suffix != ".onnx":
        return _hash([path.read_bytes().hex()])
    import onnx  # not above: the others need no such package

    return _hash([onnx.load(path).graph.SerializeToString(deterministic=True).hex()])  # without the recipe's text


def _hash(values: Iterable[Tensor | str]) -> str:
    total = hashlib.sha256()
    for value in values:
        if isinstance(value, Tensor):
            total.update(f"{value.dtype}{tuple(value.shape)}".encode())
            value = value.detach().contiguous().numpy().tobytes().hex()
        total.update(value.encode())
    return total.hexdigest()[:16]


def _named(job: tuple[str, str]) -> tuple[str, dict[str, str]]:
    return " / ".join(job), digest(*job)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="file to keep the digests in")
    parser.add_argument("--compare", type=Path, help="file to compare with")
    parser.add_argument("--networks", nargs="+", default=SUBJECTS, choices=["demo", *NETS])
    parser.add_argument("--presets", nargs="+", default=presets(), choices=presets())
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    jobs = [(name, preset) for name in options.networks for preset in options.presets]
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        found = dict(pool.map(_named, jobs))
    if options.write:
        options.write.write_text(json.dumps(found, indent=1))
    return compare(json.loads(options.compare.read_text()), found) if options.compare else 0


def compare(before: dict[str, dict[str, str]], now: dict[str, dict[str, str]]) -> int:
    """Say what differs; 1 where something does, or where nothing was compared."""
    both = [name for name in now if name in before]
    differ = [(name, kind) for name in both for kind in now[name] if now[name][kind] != before[name].get(kind)]
    for name, kind in differ:
        sys.stdout.write(f"{name}: {kind} {before[name].get(kind)} -> {now[name][kind]}\n")
    sys.stdout.write(f"{len(both)} compared, {len({name for name, _ in differ})} differ\n")
    return int(bool(differ) or not both)


if __name__ == "__main__":
    sys.exit(main())
