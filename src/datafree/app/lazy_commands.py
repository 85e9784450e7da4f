"""Commands by name: their modules are loaded when one is called, and torch when it begins to work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from inspect import signature
from typing import Any

import typer
from typer.core import TyperGroup

from datafree.app.uncollected import uncollected


@dataclass(frozen=True)
class CommandHelp:
    """What the list of commands says of one, in at most 66 letters, and how it is called."""

    line: str
    examples: tuple[str, ...]


COMMANDS = {
    "demo": CommandHelp(
        "Compress EfficientNet-Lite0 without data, look at photographs.",
        ("datafree demo", "datafree demo --recipe w4a8 --out lite0.onnx", "datafree demo digits"),
    ),
    "compress": CommandHelp(
        "Compress a network into a file, or into a run directory.",
        (
            "datafree compress net.onnx --recipe w8a8 --out small.onnx",
            "datafree compress torchvision:resnet18 --pretrained --out run",
            "datafree compress mycode.nets:build --weights net.pth --out run",
        ),
    ),
    "inspect": CommandHelp(
        "Say what compress would do with a network.",
        ("datafree inspect net.onnx --recipe w8a8", "datafree inspect timm:mobilenetv2_100 -v"),
    ),
    "evaluate": CommandHelp(
        "Measure what was lost, on labelled images.",
        ("datafree evaluate run --data photos", "datafree evaluate run --data digits.npz --json"),
    ),
    "export": CommandHelp(
        "Write a run's network as one file, and check the file.",
        ("datafree export run small.onnx", "datafree export run float.onnx --float"),
    ),
    "images": CommandHelp(
        "Write the images that a run made.",
        ("datafree images run --out made",),
    ),
    "report": CommandHelp(
        "Write what a run did as one HTML file, or several side by side.",
        ("datafree report run", "datafree report w8a8 w4a8 --out both.html"),
    ),
    "sweep": CommandHelp(
        "Set bytes and speed of several recipes against what is lost.",
        ("datafree sweep net.onnx --recipes w8a8,w6a6,w4a8,prune50 --out all",),
    ),
    "bench": CommandHelp(
        "Time files side by side.",
        ("datafree bench float.onnx small.onnx", "datafree bench a.onnx b.onnx --threads 2 --json"),
    ),
}


class LazyGroup(TyperGroup):
    """Lists COMMANDS as they are registered, and loads the one that is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(name) if name in COMMANDS else command, rest


def load(name: str) -> Any:
    """The command, with the flags of the exporters there are now."""
    function: Callable[..., Any] = getattr(import_module(f"datafree.app.commands.{name}"), name)
    if name == "export":
        from datafree.app.export_options import with_exporter_options

        vars(function).pop("__signature__", None)
        vars(function)["__signature__"] = with_exporter_options(signature(function, eval_str=True))
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    alone.command(name, epilog=examples(*COMMANDS[name].examples))(_after_loading(function))
    return typer.main.get_command(alone)


def _after_loading(function: Callable[..., None]) -> Callable[..., None]:
    """The command, which begins with loading what nearly all of them need."""

    @wraps(function)
    def begun(*args: Any, **given: Any) -> None:
        with uncollected():
            import_module("datafree.app.tables")
        function(*args, **given)

    return begun


def examples(*lines: str) -> str:
    """Below a help text; \\b keeps its lines as they are."""
    return "\n".join(["\b", "Examples:" if len(lines) > 1 else "Example:", *(f"  {line}" for line in lines)])
