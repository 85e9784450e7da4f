"""Checkpoints: `load_model(..., weights=FILE)` of .safetensors and .pth."""

from __future__ import annotations

import io
import pickle
import random
from pathlib import Path

import safetensors.torch
import torch

from fuzz import faults
from fuzz.harness import Target, fuzz, instrumented

with instrumented("torch._weights_only_unpickler", "torch.serialization"):
    from datafree.models import ModelError, check_weights, load_model
    from fuzz.networks import network

ZIP, OLD, SAFE = b"PK", b"\x80", b""


class Harm:
    def __reduce__(self) -> tuple:
        import os

        return os.system, ("true",)


def saved(value: object, **options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def seeds() -> list[bytes]:
    state = network()[0].state_dict()
    sparse = {**state, "last.weight": state["last.weight"].to_sparse()}
    strided = {**state, "last.weight": torch.ones(1).expand(3, 4)}
    files = [saved(x) for x in (state, {"model": state}, sparse, strided, {"x": Harm()}, {("a", "b"): 1}, [1])]
    files += [saved({name: x.to("meta") for name, x in state.items()}), saved(network()[0])]
    files += [saved(state, _use_new_zipfile_serialization=False), pickle.dumps({"x": Harm()})]
    hurt = {**state, "last.weight": torch.full((3, 4), float("nan")), "norm.running_var": -torch.ones(4)}
    named = {"../../x": torch.zeros(2), "a\nb": torch.zeros(1)}
    return files + [safetensors.torch.save(x) for x in (state, hurt, named, {"x": torch.zeros(0)})]


def read(data: bytes, folder: Path) -> object:
    is_pickle = data.startswith((ZIP, OLD))
    path = folder / ("net.pth" if is_pickle else "net.safetensors")
    path.write_bytes(data)
    model, example = load_model("fuzz.networks:network", weights=path)
    check_weights(model)
    return model(example)


def fault(data: bytes, dice: random.Random) -> bytes:
    if data.startswith(ZIP):
        return faults.of_zip(data, dice, inside=faults.of_bytes)
    return faults.of_bytes(data, dice) if data.startswith(OLD) else faults.of_safetensors(data, dice)


TARGET = Target("checkpoints", seeds, read, (ModelError,), fault)

if __name__ == "__main__":
    fuzz(TARGET)
