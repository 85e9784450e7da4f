"""Networks that go to another process of this user."""

from __future__ import annotations

import pickle

from torch import nn

from datafree.models.optional import import_optional


def to_bytes(model: nn.Module) -> bytes | None:
    """The network as Python pickles it; None = it cannot be, as where its class stands inside of a function."""
    try:
        return pickle.dumps(model)
    except Exception:  # what a class raises when it is pickled is its own affair
        return None


def from_bytes(data: bytes) -> nn.Module:
    """The network of `to_bytes`. Code runs from these bytes: they come from the process that asks for the work."""
    if b"torchvision" in data or b"timm" in data:
        import_optional("torchvision")
    return pickle.loads(data)
