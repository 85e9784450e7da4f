"""Weights that an ONNX file keeps in other files of its folder: which these are, and reading them.

onnx itself takes no place outside of the model's folder, no link and no absolute path (since 1.16).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datafree.models.state_dict import ModelError


def files_of(path: Path) -> tuple[Path, ...]:
    """A network's file, and where it is an ONNX file those that hold its weights; what cannot be read has none."""
    if path.suffix != ".onnx" or not path.is_file():
        return (path,)
    try:
        model = importlib.import_module("onnx").load(path, load_external_data=False)
        beside = (path.parent / location for location in _locations(model) if _is_inside(location, path))
        return (path, *(file for file in beside if file.is_file()))
    except Exception:  # of protobuf, on what is no ONNX file; whoever reads it says so
        return (path,)


def num_file_bytes(path: Path) -> int:
    """Of a network's file, and of those that hold its weights."""
    return sum(file.stat().st_size for file in files_of(path))


def check_weight_files(model: Any, path: Path) -> None:
    """Refuse a model whose weights are not there, and read those that lie in its nodes; the others stay where they are.

    Raises:
        ModelError: a file is missing; names it.
    """
    for location in _locations(model):
        if _is_inside(location, path) and not (path.parent / location).exists():
            raise ModelError(
                f"{path} keeps its weights in another file, {location!r}, which is not there; put it beside it"
            )
    own = {tensor.name for tensor in model.graph.initializer}
    read_weights_((tensor for tensor in _tensors(model.graph) if tensor.name not in own), path)


def read_weights_(tensors: Iterable[Any], path: Path) -> None:
    """Read into these tensors of the model at `path` what they keep in other files.

    Raises:
        ModelError: a file is cut off, outside of the model's folder, or no file of its own.
    """
    helper = importlib.import_module("onnx.external_data_helper")
    for tensor in tensors:
        if not helper.uses_external_data(tensor):
            continue
        try:
            helper.load_external_data_for_tensor(tensor, str(path.absolute().parent))
        except Exception as error:  # of onnx, in several types
            raise unreadable(tensor, path, error) from None
        for field in ("data_location", "external_data"):  # onnx before 1.22 leaves them
            tensor.ClearField(field)


def unreadable(tensor: Any, path: Path, error: Exception) -> ModelError:
    """The error for a weight that lies in another file and cannot be read there."""
    reason = " ".join(str(error).split())[:300].rstrip(".")
    return ModelError(
        f"{path} keeps the weight {tensor.name!r} in another file, which cannot be read: {reason}; it has to be a "
        "whole file of its own in the same folder, and no link"
    )


def _is_inside(location: str, path: Path) -> bool:
    """A place in the model's folder; onnx refuses others."""
    return (path.parent / location).resolve().is_relative_to(path.parent.resolve())


def _locations(model: Any) -> list[str]:
    """Of the files that hold weights, each once."""
    helper = importlib.import_module("onnx.external_data_helper")
    outside = [tensor for tensor in _tensors(model.graph) if helper.uses_external_data(tensor)]
    return [*dict.fromkeys(helper.ExternalDataInfo(tensor).location for tensor in outside)]


def _tensors(graph: Any) -> Iterator[Any]:
    """All that are stored in a graph, its nodes, and the graphs in these."""
    yield from graph.initializer
    for attribute in (a for node in graph.node for a in node.attribute):
        yield from ([attribute.t] if attribute.HasField("t") else attribute.tensors)
        for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            yield from _tensors(inner)
