"""Work that takes long leaves what it has done in a folder, whole or not at all, and goes on from there."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from datafree.execution.atomic import atomic_write
from datafree.execution.phases import OnStep, ignore_steps
from datafree.execution.room import ALL_IN_MEMORY, Room
from datafree.execution.tensor_files import load_checked, save_checked
from datafree.messages import LineError, brief
from datafree.records import LayerResult, QParams

JOB, RECORD = "job.json", "record"
LONGEST_NAME = 200  # bytes; file systems allow 255, some of which is ours
EVERY = 50  # steps between two states of an optimisation


class CheckpointError(LineError):
    """A folder that holds another job's work, or is damaged."""


@dataclass(frozen=True)
class Checkpoints:
    """Named sets of tensors in a folder; without a folder nothing is kept.

    A kill leaves the old file or the new one.
    """

    folder: Path | None = None
    prefix: str = ""
    job: Mapping[str, str] = field(default_factory=dict)

    def part(self, name: str) -> Checkpoints:
        """The same folder, for one of several pieces of work."""
        return replace(self, prefix=f"{self.prefix}{name}.")

    def write(self, name: str, tensors: dict[str, Tensor], record: dict | None = None) -> None:
        """Keep a set of tensors, whole or not at all; UnwrittenError where it cannot be."""
        if self.folder is None:
            return
        path = self._path(name)
        if not self.folder.exists():
            with atomic_write(self.folder) as place:
                place.mkdir()
                (place / JOB).write_text(json.dumps(dict(self.job), indent=2))
        with atomic_write(path) as place:
            kept = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
            save_checked(kept, place, {} if record is None else {RECORD: json.dumps(record)})

    def read(self, name: str) -> dict[str, Tensor] | None:
        """What `write` was given, None where it was not.

        Raises:
            CheckpointError: the file is damaged; names it.
        """
        path = self.folder and self._path(name)
        if path is None or not path.exists():
            return None
        try:
            return load_checked(path)[0]
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise _damaged(path, error) from None

    def record(self, name: str) -> dict:
        """The plain values written beside the tensors."""
        assert self.folder is not None, "there is a record only where there are tensors"
        with safe_open(self._path(name), "pt") as file:
            return json.loads(file.metadata()[RECORD])

    def write_layer(self, result: LayerResult) -> None:
        tensors, record = layer_to_tensors(result)
        self.write(f"layer.{result.name}", tensors, record)

    def read_layer(self, name: str) -> LayerResult | None:
        tensors = self.read(f"layer.{name}")
        if tensors is None:
            return None
        try:
            found = layer_from_tensors(tensors, self.record(f"layer.{name}"))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _damaged(self._path(f"layer.{name}"), error) from None
        if found.name != name:
            raise _damaged(self._path(f"layer.{name}"), ValueError(f"it holds the layer {found.name!r}"))
        return found

    def _path(self, name: str) -> Path:
        """A file of the folder, whatever the name is made of: a layer may be called ../../x, or have 300 letters."""
        assert self.folder is not None, "asked only where work is kept"
        plain = re.sub(r"[/\\\0]", "_", f"{self.prefix}{name}")
        if len(plain.encode()) > LONGEST_NAME:
            plain = f"{plain[: LONGEST_NAME // 4]}.{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        return self.folder / f"{plain}.safetensors"


NO_CHECKPOINTS = Checkpoints()


@dataclass(frozen=True)
class Execution:
    """How something long is done: where ("cpu" or "cuda"), who is told of its steps, what is kept, in what room."""

    device: str = "cpu"
    on_step: OnStep = ignore_steps
    checkpoints: Checkpoints = NO_CHECKPOINTS
    room: Room = ALL_IN_MEMORY

    def part(self, name: str) -> Execution:
        """One of several pieces of it."""
        return replace(self, checkpoints=self.checkpoints.part(name))


ON_CPU = Execution()


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: {error}; delete that file, its work is done again")


def open_checkpoints(folder: str | Path | None, job: dict[str, str]) -> Checkpoints:
    """Checkpoints of one job, the same in all that is given, or a new folder for it once there is work to keep.

    Raises:
        CheckpointError: the folder holds another job's work; says what differs.
    """
    if folder is None:
        return Checkpoints()
    folder = Path(folder)
    known = folder / JOB
    if known.exists():
        found = _job_of(known)
        differs = [k for k in job if found.get(k, "") != job[k]]
        if differs:
            raise CheckpointError(
                f"{folder} holds work on another {' and '.join(differs)}; go on with the same model, recipe, "
                "seed, input and images, begin anew (--restart), or choose another folder"
            )
    elif folder.exists():
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
            return Checkpoints(folder, job=job)
        raise CheckpointError(f"{folder} is not a folder of unfinished work; choose an empty or a new one")
    return Checkpoints(folder, job=job)


def _job_of(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; delete the folder and start again") from None
    return found if isinstance(found, dict) else {}


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}


def adam_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything Adam remembers, by the number of the parameter."""
    held = [optimizer.state[p] for group in optimizer.param_groups for p in group["params"]]
    return {f"adam.{i}.{k}": v for i, state in enumerate(held) for k, v in state.items()}


def restore_adam(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give a fresh Adam what `adam_state` returned."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for i, parameter in enumerate(parameters):
        keys = ("step", "exp_avg", "exp_avg_sq")
        if f"adam.{i}.step" in tensors:
            held = {k: tensors[f"adam.{i}.{k}"].clone() for k in keys}
            optimizer.state[parameter] = {k: v if k == "step" else v.to(parameter.device) for k, v in held.items()}


def layer_to_tensors(result: LayerResult) -> tuple[dict[str, Tensor], dict]:
    """A solved layer as tensors and plain values."""
    grid = result.weight_qparams
    tensors = {"weight": result.weight, "bias": result.bias}
    plain = {k: v for k, v in vars(result).items() if k not in ("weight", "bias", "weight_qparams")}
    if grid is not None:
        tensors |= {"scale": grid.scale, "zero_point": grid.zero_point}
        plain |= {"qmin": grid.qmin, "qmax": grid.qmax}
    return {k: v.contiguous() for k, v in tensors.items()}, plain


def _check_kinds(record: dict) -> None:
    kinds = {"str": str, "int": int, "float": int | float, "tuple[str, ...]": tuple}
    for name, kind in ((f.name, kinds.get(str(f.type))) for f in fields(LayerResult)):
        if kind is not None and name in record and not isinstance(record[name], kind):
            raise ValueError(f"{name} of a layer is {brief(record[name])}")


def layer_from_tensors(tensors: dict[str, Tensor], record: dict) -> LayerResult:
    """What `layer_to_tensors` was given.

    Raises:
        ValueError: a scale is not positive, as no rounding leaves it, or a value is of another kind.
    """
    record = {**record, "dropped": tuple(record["dropped"]), "tried": tuple(record.get("tried", ()))}
    _check_kinds(record)
    grid = None
    if "scale" in tensors:
        if not bool((tensors["scale"] > 0).all()):
            raise ValueError(f"a scale of {record['name']} is not positive")
        grid = QParams(tensors["scale"], tensors["zero_point"], record.pop("qmin"), record.pop("qmax"))
    return LayerResult(weight=tensors["weight"], bias=tensors["bias"], weight_qparams=grid, **record)
