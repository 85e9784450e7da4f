"""Notebooks are kept without outputs, and run when the site is built."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

SECONDS = 600  # for one cell


def executed(file: Path) -> str:
    """The notebook after all its cells have run, as JSON.

    Raises:
        CellExecutionError: a cell failed; shows which, and how.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(file, as_version=4)
    quiet = ["--log-level=ERROR"]  # it warns that it talks to itself over TCP
    with tempfile.TemporaryDirectory() as scratch:
        place = {"metadata": {"path": scratch}}
        NotebookClient(notebook, timeout=SECONDS, resources=place, extra_arguments=quiet).execute()
    return nbformat.writes(notebook)


def as_markdown(notebook: str, file: Path) -> str:
    """Its cells one after another: text as it is, code in a fence, what it printed or drew below."""
    cells = json.loads(notebook)["cells"]
    parts = [part for cell in cells for part in _cell(cell)]
    first, *others = parts
    return "\n\n".join([first, f"[This page as a notebook]({file.name}){{ download }}", *others]) + "\n"


def _cell(cell: dict[str, Any]) -> list[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [source]
    return [f"```python\n{source}\n```", *filter(None, map(_output, _joined(cell["outputs"])))]


def _joined(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was printed in several parts as one."""
    found: list[dict[str, Any]] = []
    for output in outputs:
        if found and found[-1]["output_type"] == output["output_type"] == "stream":
            found[-1] = {**output, "text": [*found[-1]["text"], *output["text"]]}
        else:
            found.append(output)
    return found


def _output(output: dict[str, Any]) -> str:
    """HTML before pictures before text, as notebooks show them."""
    if output["output_type"] == "stream":
        return _printed("".join(output["text"]))
    data = {kind: "".join(value) for kind, value in output.get("data", {}).items()}
    if "text/html" in data:
        return f'<div class="output" markdown="0">\n{data["text/html"]}\n</div>'
    if "image/png" in data:
        return f'<img class="output" alt="what the cell drew" src="data:image/png;base64,{data["image/png"].strip()}">'
    return _printed(data.get("text/plain", ""))


def _printed(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""
