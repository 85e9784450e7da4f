"""A finished compression: in memory, and as a self-contained directory."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from torch import Tensor, fx

from datafree import graph as g
from datafree.execution import (
    atomic_write,
    layer_from_tensors,
    layer_to_tensors,
    load_checked,
    save_checked,
)
from datafree.messages import LineError
from datafree.recipe import Recipe
from datafree.records import ChannelStats, InputRange, LayerResult, Stats, Summary
from datafree.run.contact_sheet import contact_sheet
from datafree.run.evaluate import Evaluation, evaluate_models
from datafree.run.graph_json import FormatError, graph_from_json, graph_to_json, tensors_of
from datafree.run.shown import as_html, as_text
from datafree.signals import SIGNALS, Generator
from datafree.student import TrainableStudent

GRAPHS = ("teacher", "student")
GENERATOR = "generator.safetensors"


_DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ArithmeticError,
    IndexError,
    RuntimeError,  # of PyTorch, and of JSON nested too deeply
    MemoryError,
    SyntaxError,
    SafetensorError,
)


class RunError(LineError):
    """A run directory that is in the way, or cannot be read."""


@dataclass(frozen=True, repr=False)
class Run:
    """What `compress` returns.

    student: compressed network, eval mode, same inputs and outputs as the model.
    teacher: folded and equalized float network, same function as the model.
    stats: what BatchNorm remembers, by the teacher's node names.
    images: those that `matched`, `inverted` or `adversarial` made (N, C, H, W), for other recipes of the same network:
        `compress(..., images=run.images)`; empty where they are made in a second, or were given.
    input_range: mean and std that images were made in; None = the images were given.
    generator: of `adversarial` images; noise (N, 128) to unit-variance images.
    """

    student: fx.GraphModule
    teacher: fx.GraphModule
    recipe: Recipe
    layers: tuple[LayerResult, ...]
    summary: Summary
    stats: Stats = field(default_factory=dict)
    images: tuple[Tensor, ...] = ()
    input_range: InputRange | None = None
    generator: Generator | None = None

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the run directory at once: into a temporary neighbour, then renamed.

        Raises:
            RunError: `path` holds something already and `force` is not set.
            UnwrittenError: there is no room; `path` is as it was.
        """
        path = Path(path)
        check_free(path, force=force)
        with atomic_write(path) as place:
            (place / "layers").mkdir(parents=True)
            self._write(place)

    def __repr__(self) -> str:
        return as_text(self.summary, self.recipe)

    def _repr_html_(self) -> str:
        """What notebooks show."""
        return as_html(self.summary, self.recipe)

    def trainable(self) -> TrainableStudent[Run]:
        """A module to train with real labels, which starts at the student; `freeze()` makes a run of it again.

        Its answers at the start are the student's but for float rounding. Weights, biases and scales are parameters, in
        float32; any loop will do, with a small learning rate. The run that comes back has the size of this one.
        """
        learn = not self.recipe.runtime.fixed_grids
        return TrainableStudent(self.student, self.layers, learn_activations=learn, finish=self._trained)

    def _trained(self, student: fx.GraphModule, layers: tuple[LayerResult, ...]) -> Run:
        told = "trained after it was compressed: errors of layers are those before"
        warnings = tuple(dict.fromkeys((*self.summary.warnings, told)))
        summary = replace(self.summary, estimate=None, warnings=warnings)
        done = replace(self, student=student, layers=layers, summary=summary)
        return (
            done
            if g.end_dtype(self.student) == torch.float32
            else replace(done, student=g.with_ends(student, g.end_dtype(self.student)))
        )

    def with_ends(self, dtype: torch.dtype) -> Run:
        """The same run, whose student and teacher hand back floating outputs of another type."""
        if dtype == g.end_dtype(self.student):
            return self
        teacher = g.with_ends(self.teacher, dtype)
        student = teacher if self.student is self.teacher else g.with_ends(self.student, dtype)
        return replace(self, student=student, teacher=teacher)

    def _write(self, path: Path) -> None:
        (path / "recipe.yaml").write_text(self.recipe.dump())
        (path / "summary.json").write_text(json.dumps(asdict(self.summary), indent=2))
        for name in GRAPHS:
            graph = getattr(self, name)
            (path / f"{name}.json").write_text(json.dumps(graph_to_json(graph)))
            save_checked(tensors_of(graph), path / f"{name}.safetensors")
        known = {"input_range": json.dumps(self.input_range and asdict(self.input_range))}
        save_checked(_signal_to_file(self.stats, self.images), path / "signal.safetensors", known)
        if self.generator is not None:
            self.generator.save(path / GENERATOR)
        for shown in [x for x in self.images if x.dim() == 4][:1]:
            (path / "images.png").write_bytes(contact_sheet(shown))
        for number, result in enumerate(self.layers):
            tensors, record = layer_to_tensors(result)
            save_checked(tensors, path / "layers" / f"{number:04d}.safetensors", {"layer": json.dumps(record)})

    def __reduce__(self) -> tuple[Callable[[dict[str, bytes]], Run], tuple[dict[str, bytes]]]:
        """Pickled as the files of its directory: a graph alone would lose what is noted of its nodes."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run"
            self.save(path)
            files = [file for file in path.rglob("*") if file.is_file()]
            return _run_from_files, ({file.relative_to(path).as_posix(): file.read_bytes() for file in files},)

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Read a run directory; bit-exact, and no code runs from its files.

        Raises:
            RunError: not a run directory, or damaged; says which file.
        """
        path = Path(path)
        if not (path / "summary.json").is_file():
            raise RunError(f"{path} is not a run directory (no summary.json); give the --out of a `datafree compress`")
        try:
            summary = _summary(json.loads((path / "summary.json").read_text()))
            teacher, student = (
                graph_from_json(json.loads((path / f"{n}.json").read_text()), _read(path / f"{n}.safetensors")[0])
                for n in GRAPHS
            )
            files = sorted((path / "layers").glob("*.safetensors"))
            layers = tuple(_layer(*_read(file)) for file in files)
            if not (path / "recipe.yaml").read_text().strip():
                raise FormatError("recipe.yaml is empty")
            if len(layers) != summary.num_quantized:
                raise FormatError(f"{len(layers)} of {summary.num_quantized} layers are in layers/")
            signal = _signal_from_file(path / "signal.safetensors")
            generator = Generator.load(path / GENERATOR) if (path / GENERATOR).exists() else None
            return cls(student, teacher, Recipe.load(path / "recipe.yaml"), layers, summary, *signal, generator)
        except _DAMAGE as error:
            reason = " ".join(str(error).split())[:160]
            raise RunError(f"{path} is damaged: {type(error).__name__}: {reason}; compress again") from None


def _run_from_files(files: dict[str, bytes]) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            file = Path(folder) / name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content)
        return Run.load(folder)


def images_of(run: Run, fingerprint: str) -> tuple[Tensor, ...]:
    """The images a run made, for the same network.

    Raises:
        RunError: it made none, or for other weights.
    """
    if not run.images:
        *most, last = (recipe.model_fields["kind"].default for recipe, row in SIGNALS.items() if row.keeps_images)
        raise RunError(
            f"that run keeps no images: its signal is {run.recipe.signal.kind!r}; use one whose signal is "
            f"{', '.join(most)} or {last}"
        )
    if run.summary.fingerprint != fingerprint:
        raise RunError("that run's images were made for other weights; leave them out, and they are made anew")
    return run.images


def evaluate(run: Run, data: Any) -> Evaluation:
    """Top-1 of the student and its agreement with the float network, percent, on images.

    Args:
        data: batches (x (N, C, H, W), y (N,)), as of a DataLoader; or batches x, or one tensor, without labels: then
            the agreement alone is known.

    Raises:
        ValueError: no images, a network that does not return logits (N, classes), images or labels that do not fit.
    """
    return evaluate_models(run.student, run.teacher, data)


def check_free(path: Path, *, force: bool) -> None:
    """Refuse to write over a directory that holds something.

    Raises:
        RunError: what is there, and that --force replaces a run.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if path.is_dir() and (path / "summary.json").is_file():
        if not force:
            raise RunError(f"{path} holds another run; choose another --out, or --force to replace it")
        return
    raise RunError(f"{path} exists and is not a run directory; choose another --out (nothing is replaced there)")


def _summary(fields: Any) -> Summary:
    summary = TypeAdapter(Summary).validate_python(fields)
    if not _is_part(fields, json.loads(json.dumps(asdict(summary)))):
        raise FormatError("summary.json has fields that this version does not know, or values it reads otherwise")
    return summary


def _is_part(part: Any, whole: Any) -> bool:
    """Whether all that is written is in what was read; an older version knew fewer fields."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(name in whole and _is_part(value, whole[name]) for name, value in part.items())
    if isinstance(part, list) and isinstance(whole, list):
        return len(part) == len(whole) and all(map(_is_part, part, whole))
    return part == whole


def _signal_to_file(stats: Stats, images: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Statistics as they are; images, which hold nothing finer, as float16."""
    parts = {f"{part}.{n}": getattr(s, part) for n, s in stats.items() for part in ("mean", "std", "gain")}
    tensors = {name: value.contiguous() for name, value in parts.items() if value is not None}
    return tensors | {f"images.{i}": x.half().contiguous() for i, x in enumerate(images)}


def _signal_from_file(path: Path) -> tuple[Stats, tuple[Tensor, ...], InputRange | None]:
    tensors, metadata = _read(path)
    known = json.loads(metadata["input_range"])
    chosen = known and InputRange(tuple(known["mean"]), tuple(known["std"]), known["source"])
    names = [n.removeprefix("mean.") for n in tensors if n.startswith("mean.")]
    num_images = sum(n.startswith("images.") for n in tensors)
    stats = {n: ChannelStats(tensors[f"mean.{n}"], tensors[f"std.{n}"], tensors.get(f"gain.{n}")) for n in names}
    return stats, tuple(tensors[f"images.{i}"].float() for i in range(num_images)), chosen


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and what is written beside them.

    Raises:
        FormatError: a bit of the tensors is another than it was.
    """
    try:
        return load_checked(path)
    except ValueError as error:
        raise FormatError(f"{path.name}: {error}") from None


def _layer(tensors: dict[str, Tensor], metadata: dict[str, str]) -> LayerResult:
    return layer_from_tensors(tensors, json.loads(metadata["layer"]))
