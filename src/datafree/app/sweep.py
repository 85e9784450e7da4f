"""Several recipes of one network: compressed one after another with images in common, and timed side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor, nn

from datafree.app.latency import Latency, bench
from datafree.app.origin import Origin, write_command
from datafree.app.progress import ESTIMATING, job_progress
from datafree.app.unfinished import unfinished_work
from datafree.app.watched import compress_watched
from datafree.execution import atomic_write
from datafree.export import EXPORTERS
from datafree.extras import install
from datafree.recipe import Recipe
from datafree.records import InputRange
from datafree.run import EFFORTS, Run, RunError
from datafree.sharing import Sharing, sharing
from datafree.solve import Pool

MARKS = "sweep.json"  # in the folder of a sweep: what it is of
FLOAT = "float"
EFFORT = "brief"  # of each estimate
TURNS = 9  # in which every file is timed


@dataclass(frozen=True)
class Network:
    """What is swept over. arguments: of the command line, which name it; given: mean and std of its input, if known."""

    model: nn.Module
    example: Tensor | tuple[Tensor, ...]
    arguments: tuple[str, ...]
    given: InputRange | None
    seed: int
    pool: Pool


@dataclass(frozen=True)
class Asked:
    """A recipe, and what it is called on the command line."""

    given: str
    recipe: Recipe


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


def open_folder(out: Path, recipes: Mapping[str, Asked], origin: str, seed: int) -> None:
    """A folder for these runs: new, or that of the same sweep, which goes on, with other recipes perhaps.

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
    with atomic_write(out / MARKS) as place:
        place.write_text(json.dumps({**marks, "recipes": {**known["recipes"], **asked}}, indent=2))


def _read_marks(file: Path) -> dict:
    try:
        found = json.loads(file.read_text())
        assert isinstance(found["recipes"], dict)
        return found
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise RunError(f"{file} is damaged: {error}; choose another --out") from None


def compress_all(network: Network, recipes: Mapping[str, Asked], out: Path) -> dict[str, Run]:
    """Compress by each recipe that is not done yet; graph and images that one made serve all that ask for the same."""
    shared = sharing()
    done = {name: Run.load(out / name) for name in recipes if (out / name / "summary.json").is_file()}
    for name, asked in recipes.items():
        if name not in done:
            done[name] = _compress(network, asked, out / name, done, shared)
    return {name: done[name] for name in recipes}


def _compress(network: Network, asked: Asked, place: Path, done: Mapping[str, Run], shared: Sharing) -> Run:
    alike = (name for name, run in done.items() if run.images and run.recipe.signal == asked.recipe.signal)
    donor = next(alike, None)
    with (
        unfinished_work(place, restart=False) as folder,
        job_progress(f"{place.name}: ", after={ESTIMATING: EFFORTS[EFFORT].passes}) as progress,
    ):
        run = compress_watched(
            progress, network.model, asked.recipe, network.example, seed=network.seed, pool=network.pool,
            images=done[donor] if donor else None, effort=EFFORT, resume=folder, on_range=network.given,
            shared=shared,
        )  # fmt: skip
        run.save(place)
    given = ["--images", str(place.parent / donor)] if donor else []
    write_command(place, ["compress", *network.arguments, "--recipe", asked.given, *given, "--out", str(place)])
    return run


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
