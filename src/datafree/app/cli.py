"""The command line, `datafree demo | compress | inspect | evaluate | export | images | report | sweep | bench`."""

from __future__ import annotations

import io
import logging
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from importlib import metadata
from typing import Annotated, Any

import typer

from datafree.app.command_line import remember_arguments
from datafree.app.console import show, show_error
from datafree.app.lazy_commands import COMMANDS, LazyGroup, examples
from datafree.app.stopping import INTERRUPTED, how_stopped

UsageError: Any = typer.BadParameter.__base__  # click's own, which older typer imports and newer typer contains

app = typer.Typer(
    cls=LazyGroup,
    help="Compress a trained convolutional network with no data at all.",
    epilog=examples("datafree demo", "datafree compress net.onnx --recipe w8a8 --out small.onnx", "datafree bench -h"),
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, said in COMMANDS.items():
    app.command(name, help=said.line)(lambda: None)  # LazyGroup puts the command itself in its place


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0 done, 1 the run failed, 2 the input is wrong, 130 interrupted, 143 terminated.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII locale shows "?" instead of failing
    try:
        # in a context of its own: --quiet ends with the command
        asked = arguments or ["--help"]
        context = copy_context()
        context.run(remember_arguments, asked)
        with ExitStack() if "--debug" in arguments else _without_log_lines():
            code = context.run(lambda: app(asked, prog_name="datafree", standalone_mode=False)) or 0
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        code, message = _explain(error)
        show_error(message)
        return code
    if code == INTERRUPTED:  # newer typer returns it
        code, word = how_stopped()
        show_error(word)
    return code


@contextmanager
def _without_log_lines() -> Iterator[None]:
    """What torch logs says nothing to who reads one line of ours."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _explain(error: Exception) -> tuple[int, str]:
    """Exit code and message: a ValueError is the user's, a run that failed and the unforeseen are 1."""
    if isinstance(error, UsageError):
        usage: Any = error
        command = usage.ctx.command_path if usage.ctx else "datafree"
        return 2, f"{usage.format_message().rstrip('.')}; see {command} --help"
    from datafree.app.unfinished import Interrupted, Starved  # which load torch: not for a typing error
    from datafree.execution import UnwrittenError, WorkerError
    from datafree.records import DivergedError
    from datafree.solve import LayerError

    if isinstance(error, Interrupted):
        code, word = how_stopped()
        return code, f"{word}; {error}"
    if isinstance(error, LayerError | DivergedError | Starved | UnwrittenError | WorkerError):
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
