"""`datafree images`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from datafree.app.arguments import Debug, Quiet
from datafree.app.console import show


def images(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory, --out of compress.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="What to write: images.npy, and a .png of each.")],
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the images that a run made, for other tools."""
    from datafree.app.given_images import write_images
    from datafree.run import Run

    count = write_images(Run.load(directory), out)
    show(Text(f"{count} images of {directory} are in {out}"))
