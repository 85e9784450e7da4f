"""Several recipes of one network or of several: what is asked, the folder it is kept in, files timed side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from datafree.app.latency import Latency, bench
from datafree.app.origin import Origin
from datafree.app.progress import job_progress
from datafree.app.sweep_runs import Asked
from datafree.execution import atomic_write
from datafree.export import EXPORTERS
from datafree.extras import install
from datafree.recipe import Recipe
from datafree.run import Run, RunError

MARKS = "sweep.json"  # in the folder of a sweep: what it is of
FLOAT = "float"
TURNS = 9  # in which every file is timed


def read_recipes(names: str, settings: Sequence[str]) -> dict[str, Asked]:
    """Recipes by the name they are shown and kept under.

    Raises:
        RecipeError, RunError: one is unknown, none is given, or one twice.
    """
    found: dict[str, Asked] = {}
    for name in (part.strip() for part in names.split(",") if part.strip()):
        is_file = Path(name).suffix in (".yaml", ".yml")
        recipe = (Recipe.load(name) if is_file else Recipe.preset(name)).updated(list(settings))
        label = Path(name).stem
        if label in found or label == FLOAT:
            raise RunError(f"--recipes: {label!r} comes twice, or is {FLOAT!r}; give each recipe a name of its own")
        found[label] = Asked(name, recipe)
    if not found:
        raise RunError("--recipes names none; write --recipes w8a8,w4a8")
    return found


def folders(models: Sequence[str], out: Path) -> dict[str, Path]:
    """Where the runs of each model go: into `out` itself, or, of several models, into a folder each.

    Raises:
        RunError: two models have the same name, or `out` holds the runs of one.
    """
    if len(models) == 1:
        return {models[0]: out}
    if (out / MARKS).is_file():
        raise RunError(f"{out} holds a sweep of one model; choose another --out")
    named = {model: out / Path(model.rpartition(":")[2]).name.removesuffix(".onnx") for model in models}
    if len(set(named.values())) < len(models):
        raise RunError(f"two of {', '.join(models)} have the same name; sweep one of them by itself")
    return named


def check_folder(out: Path, recipes: Mapping[str, Asked], origin: str, seed: int) -> str:
    """What marks a folder as of these runs: a new one, or that of the same sweep, with other recipes perhaps.

    Raises:
        RunError: it holds something else, or is of another model, seed or recipe of that name.
    """
    marks = {"model": origin, "seed": str(seed)}
    asked = {name: item.recipe.dump() for name, item in recipes.items()}
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARKS).is_file())):
        raise RunError(f"{out} exists and is no sweep; choose another --out")
    known = _read_marks(out / MARKS) if (out / MARKS).is_file() else {**marks, "recipes": {}}
    others = [f"{key} {known.get(key)}" for key, value in marks.items() if known.get(key) != value]
    others += [f"another recipe {n!r}" for n, text in asked.items() if known["recipes"].get(n, text) != text]
    if others:
        raise RunError(f"{out} holds a sweep of {', '.join(others)}; choose another --out")
    return json.dumps({**marks, "recipes": {**known["recipes"], **asked}}, indent=2)


def mark_folder(out: Path, marks: str) -> None:
    with atomic_write(out / MARKS) as place:
        place.write_text(marks)


def _read_marks(file: Path) -> dict:
    try:
        found = json.loads(file.read_text())
        assert isinstance(found["recipes"], dict)
        return found
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise RunError(f"{file} is damaged: {error}; choose another --out") from None


def timed(runs: Mapping[str, Run], out: Path, threads: int) -> tuple[dict[str, Origin], list[str]]:
    """Each run's ONNX file beside the float network's, and why one was not timed."""
    origins = {name: Origin(name) for name in runs}
    if any(find_spec(package) is None for package in ("onnx", "onnxruntime")):
        return origins, [f"nothing was timed, for want of ONNX Runtime; {install('onnx')}"]
    exporter = EXPORTERS["ONNX"]
    files, notes = {}, []
    with job_progress() as progress:
        for name, run in {FLOAT: next(iter(runs.values())), **runs}.items():
            file = out / f"{name}{exporter.suffix}"
            progress.on_step(f"writing {file.name}", 0, 0)
            try:
                if not file.is_file():
                    exporter.write(run, file, replace(exporter.options(), float32=name == FLOAT), force=False)
                files[name] = file
            except ValueError as error:
                notes.append(f"{name} was not timed: {error}")
        progress.on_step("timing the files side by side", 0, 0)
        found = bench([*files.values()], threads=threads, turns=TURNS) if FLOAT in files and len(files) > 1 else []
    figures = dict(zip(files, found, strict=False))
    return {name: _with_time(origin, figures.get(name)) for name, origin in origins.items()}, notes


def _with_time(origin: Origin, found: Latency | None) -> Origin:
    return replace(origin, milliseconds=found.median_ms, speed=found.speed) if found else origin
