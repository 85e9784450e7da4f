"""Libraries of networks, which are imported where a network needs them."""

from __future__ import annotations

import functools
import importlib
import re
import sys
import warnings
from typing import Any

import torch

from datafree.extras import install
from datafree.models.state_dict import ModelError


def import_optional(module: str) -> Any:
    try:
        with warnings.catch_warnings():
            # torchvision's image decoders, which are not used here, may miss their system libraries
            warnings.filterwarnings("ignore", message="Failed to load image Python extension")
            import_torchvision()
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModelError(f"{error.name} is not installed; {install('models')}") from error


def import_torchvision() -> None:
    """Import torchvision also where its compiled operators do not load, as its CUDA wheel beside a CPU torch.

    Its import then fails for want of two operator schemas, which no classification network uses.
    """
    try:
        importlib.import_module("torchvision")
        return
    except RuntimeError as error:
        if not re.search("operator torchvision::q?nms does not exist", str(error)):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # half-imported; a second import would take them as complete
    _nms_schemas()
    importlib.import_module("torchvision")


@functools.cache  # keeps the library alive: its schemas vanish with it
def _nms_schemas() -> torch.library.Library:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
