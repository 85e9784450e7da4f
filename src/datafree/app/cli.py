"""The command line, `datafree demo | compress | inspect | evaluate | export | images | bench`."""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata
from inspect import signature
from typing import Annotated, Any

import typer

from datafree.app.commands.bench import bench
from datafree.app.commands.compress import compress
from datafree.app.commands.demo import demo
from datafree.app.commands.evaluate import evaluate
from datafree.app.commands.export import export
from datafree.app.commands.images import images
from datafree.app.commands.inspect import inspect
from datafree.app.console import show, show_error
from datafree.app.export_options import with_exporter_options
from datafree.app.unfinished import Interrupted
from datafree.solve import LayerError

UsageError: Any = typer.BadParameter.__base__  # click's own, which older typer imports and newer typer contains
EXPORT = signature(export, eval_str=True)

app = typer.Typer(
    help="Compress a trained convolutional network with no data at all.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (demo, compress, inspect, evaluate, export, images, bench):
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 the run failed, 2 the user's input is wrong."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII locale shows "?" instead of failing
    vars(export)["__signature__"] = with_exporter_options(EXPORT)  # of the exporters there are now
    try:
        return app(arguments or ["--help"], prog_name="datafree", standalone_mode=False) or 0
    except (typer.Abort, Interrupted) as error:
        show_error(f"interrupted; {error}" if isinstance(error, Interrupted) else "interrupted")
        return 130  # as shells count it
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        code, message = _explain(error)
        show_error(message)
        return code


def _explain(error: Exception) -> tuple[int, str]:
    """Exit code and message: a ValueError is the user's, a failed layer and the unforeseen are the run's."""
    if isinstance(error, UsageError):
        usage: Any = error
        command = usage.ctx.command_path if usage.ctx else "datafree"
        return 2, f"{usage.format_message().rstrip('.')}; see {command} --help"
    if isinstance(error, LayerError):
        return 1, str(error)
    if isinstance(error, ValueError):
        return 2, str(error)
    return 1, f"{type(error).__name__}: {error} (not foreseen; --debug shows where)"


def _show_version(asked: bool) -> bool:
    if asked:
        show(f"datafree {metadata.version('datafree')}")
        raise typer.Exit
    return asked


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass
