"""The options of `datafree export`: those of every exporter there is; a file takes those of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from datafree.export import EXPORTERS, Option, exporter_for


@dataclass(frozen=True)
class ExporterOption:
    """A field of an exporter's options, as a flag."""

    exporter: str
    name: str
    kind: Any
    default: Any
    said: Option

    @property
    def flag(self) -> str:
        return self.said.flag or f"--{self.name.replace('_', '-')}"

    def written(self, value: object) -> str:
        """The flag as a user writes it for a value."""
        return self.flag.replace("--", "--no-", 1) if value is False else self.flag


def exporter_options() -> list[ExporterOption]:
    """All of them, in the order of the table."""
    found = []
    for exporter, row in EXPORTERS.items():
        hints = get_type_hints(row.options, include_extras=True)
        for field in fields(row.options):
            kind, said = get_args(hints[field.name])
            found.append(ExporterOption(exporter, field.name, kind, field.default, said))
    return found


def with_exporter_options(signature: Signature) -> Signature:
    """A command's signature with a flag for each name among the exporters' options, in place of its `**given`."""
    own = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in list(signature.parameters.values())[:-1]]
    required = [p for p in own if p.default is Parameter.empty]
    offered = {option.name: _parameter(option) for option in reversed(exporter_options())}
    return signature.replace(parameters=[*required, *reversed(offered.values()), *own[len(required) :]])


def _parameter(option: ExporterOption) -> Parameter:
    """None where it is not given."""
    names = f"{option.flag}/{option.written(False)}" if option.default is True else option.flag
    shown = option.flag[2:] if option.default is True else option.default
    usual = f"  [default: {shown}]" if shown else ""
    said = f"{option.exporter}: {option.said.help}{usual}"
    offered = typer.Option(names, metavar=option.said.metavar, help=said)
    annotation = Annotated[option.kind | None, offered]
    return Parameter(option.name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def options_for(file: Path, given: Mapping[str, Any]) -> Any:
    """The options of the file's exporter, from those that are not None.

    Raises:
        ValueError: one is given that only other files have; says which.
    """
    exporter, chosen = exporter_for(file), {name: value for name, value in given.items() if value is not None}
    own = {field.name for field in fields(exporter.options)}
    for option in exporter_options():
        if option.name in chosen.keys() - own:
            raise ValueError(
                f"{option.written(chosen[option.name])} is of {option.exporter} files; leave it out, or write a "
                f"{EXPORTERS[option.exporter].suffix} file instead of {file}"
            )
    return exporter.options(**chosen)
