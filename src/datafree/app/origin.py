"""How a run was made and what was measured of it, kept beside it for its report."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from datafree.execution import atomic_write
from datafree.run import Evaluation, RunError

COMMAND, EVALUATION = "command.txt", "evaluation.json"  # in a run directory


@dataclass(frozen=True)
class Origin:
    """What lies beside a run.

    label: what it is called among others. command: what made it; "" = not known. evaluation: of `datafree evaluate`,
    name -> text. milliseconds, speed: of its file for one image, and times float; None = not timed.
    """

    label: str
    command: str = ""
    evaluation: dict[str, str] | None = None
    milliseconds: float | None = None
    speed: float | None = None


def write_command(directory: Path, arguments: Sequence[str]) -> None:
    if arguments:
        with atomic_write(directory / COMMAND) as place:
            place.write_text(shlex.join(["datafree", *arguments]) + "\n")


def write_evaluation(directory: Path, found: Evaluation, facts: dict[str, str]) -> None:
    """Replace what was measured before."""
    with atomic_write(directory / EVALUATION) as place:
        place.write_text(json.dumps({"figures": asdict(found), "facts": facts}, indent=2))


def read_origin(directory: Path, label: str) -> Origin:
    """What is known of a run directory.

    Raises:
        RunError: evaluation.json is damaged.
    """
    command, file = directory / COMMAND, directory / EVALUATION
    told = command.read_text().strip() if command.is_file() else ""
    if not file.is_file():
        return Origin(label, told)
    try:
        facts = {str(name): str(text) for name, text in json.loads(file.read_text())["facts"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{file} is damaged: {error}; delete it, or run datafree evaluate again") from None
    return Origin(label, told, facts)
