"""Checkpoints: tensors by name from a file, and nothing else from it."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from datafree.messages import LineError, brief


class ModelError(LineError):
    """A model name, a factory or a weights file that cannot be used."""


def load_weights_(model: nn.Module, path: Path, *, name: str) -> None:
    own = model.state_dict()
    state = _unprefixed(_read_weights(path), own)
    # The counter of batches is used in training only, and older files do not have it.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    other = [
        f"{key} {_kind(state[key])} for {_kind(own[key])}"
        for key in state
        if key in own and _kind(state[key]) != _kind(own[key])
    ]
    found = {"missing": missing, "unexpected": unexpected, "of another shape or kind": other}
    faults = ", ".join(f"{len(keys)} {fault} ({_first_three(keys)})" for fault, keys in found.items() if keys)
    if faults:
        raise ModelError(
            f"weights {path} do not fit {name!r}: {faults}; give the file saved from this very network, or "
            "the network it was saved from as pkg.module:factory"
        )
    try:
        model.load_state_dict(state, strict=False)
    except (RuntimeError, NotImplementedError) as error:  # a type of numbers that PyTorch converts into no other
        raise ModelError(f"weights {path} cannot be copied into {name!r}: {error}; save them as float32") from None


def _read_weights(path: Path) -> dict[str, Tensor]:
    existing(path)
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise ModelError(f"weights {path} are {path.suffix or 'without a suffix'}; give .safetensors, .pth or .pt")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        _check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except Exception as error:  # a damaged file raises anything from OSError to KeyError
        code = re.search(r"GLOBAL (\S+)|TorchScript", str(error))
        if code:
            raise ModelError(
                f"weights {path} hold code ({code[1] or code[0]}), not tensors alone, and are not opened; "
                "save model.state_dict() with safetensors.torch.save_file"
            ) from error
        raise ModelError(
            f"weights {path} ({path.stat().st_size} bytes) cannot be read as {path.suffix} "
            f"({type(error).__name__}); the file is damaged, cut short or of another format: write it again"
        ) from error
    return _unwrapped(content, path=path)


def _check_archive(path: Path) -> None:
    """Refuse what unpacks to more than the file: torch.save squeezes nothing."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        total = sum(member.file_size for member in archive.infolist())
    size = path.stat().st_size
    if total > 2 * size + 2**20:
        raise ModelError(
            f"weights {path} ({size} bytes) unpack to {total} bytes, and torch.save squeezes no weights; save "
            "model.state_dict() again"
        )


def _unwrapped(content: object, *, path: Path) -> dict[str, Tensor]:
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise ModelError(f"weights {path} hold {type(content).__name__}, not tensors by name; save model.state_dict()")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ModelError(
                f"weights {path} hold {type(value).__name__} under {brief(key)}, not a tensor; save "
                'model.state_dict(), alone or under "state_dict"'
            )
        if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_nested:
            raise ModelError(
                f"weights {path} hold {_form(value)} under {brief(key)}; save plain tensors, as model.float().cpu() has"
            )
    return content


def _unprefixed(state: dict[str, Tensor], own: dict[str, Any]) -> dict[str, Tensor]:
    """Drop the "module." that DataParallel puts before every name, unless the model's own names have it."""
    prefix = "module."
    if any(key.startswith(prefix) for key in own) or not all(key.startswith(prefix) for key in state):
        return state
    return {key.removeprefix(prefix): value for key, value in state.items()}


def existing(path: Path) -> Path:
    if not path.is_file():
        raise ModelError(f"weights {path} are not a file (looked from {Path.cwd()}); give .safetensors, .pth or .pt")
    return path


def _form(value: Tensor) -> str:
    if value.is_meta:
        return "a tensor without values (device meta)"
    return "a quantized tensor" if value.is_quantized else "a nested tensor" if value.is_nested else "a sparse tensor"


def _kind(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else " complex" if tensor.is_complex() else " integer"
    return f"{tuple(tensor.shape)}{kind}"


def _first_three(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
