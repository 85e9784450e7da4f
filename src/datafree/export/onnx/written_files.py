"""Models on disk: one file, or one of the graph and one of weights where a protobuf may not be as large."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

LARGEST = 2**31 - 1  # bytes of a protobuf
SMALL = 256  # bytes; what is smaller, such as shapes, stays with the graph
AROUND = 64  # bytes at most of what is written around a tensor or node, its name aside


def data_file(path: Path) -> Path:
    """Where the weights of a model that is too large for one file lie."""
    return path.with_name(f"{path.name}.data")


def write_model(model: onnx.ModelProto, place: Path, *, largest: int = LARGEST) -> None:
    """Write a model to `place`; its weights beside it where all would be more than `largest` bytes.

    The weights are gone from `model` then.
    """
    import onnx

    if num_bytes(model) <= largest:
        place.write_bytes(model.SerializeToString())
    else:
        name = data_file(place).name
        onnx.save_model(model, place, save_as_external_data=True, location=name, size_threshold=SMALL)
        if data_file(place).exists():
            data_file(place).chmod(place.stat().st_mode)  # onnx makes it readable for its owner alone


def num_bytes(model: onnx.ModelProto) -> int:
    """At most so many of the serialized model, which protobuf itself only counts up to 2 GB."""
    stored = sum((len(t.raw_data) or t.ByteSize()) + len(t.name.encode()) + AROUND for t in model.graph.initializer)
    described = (model.graph.node, model.graph.value_info, model.graph.input, model.graph.output, model.metadata_props)
    return stored + sum(item.ByteSize() + AROUND for items in described for item in items)
