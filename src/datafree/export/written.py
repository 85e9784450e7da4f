"""What an exporter's options are described with, and what it says of a file."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Option:
    """How the command line offers one option: `Annotated[int, Option("what it is for")]` in a record of options.

    flag: where it is not `--` and the field's name.
    metavar: how its value is shown.
    """

    help: str
    flag: str = ""
    metavar: str | None = None


@dataclass(frozen=True)
class NoOptions:
    """Of an exporter that leaves nothing to choose."""


@dataclass(frozen=True)
class Written:
    """A file that is there, and is what it should be.

    findings: what checking it found, such as how near it is to the student; name -> text.
    notes: what a user should know and the file does not say.
    details: more of what was found, a line each, for who asks for all of it.
    """

    findings: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    details: tuple[str, ...] = ()
