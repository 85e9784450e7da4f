"""Networks as people have them, as they are compressed: out of their wrappers, in float32, on the CPU."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from datafree.models.state_dict import ModelError

COMPILED = "_orig_mod"  # where torch.compile keeps the network
PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def plain(model: Any) -> nn.Module:
    """The network that is compressed: the caller's own where nothing is to be changed, else a copy.

    `torch.compile`, DataParallel and DistributedDataParallel are taken off, inside of the network too; weights become
    float32 and go to the CPU; results that modules hold are let go of their gradients.

    Raises:
        ModelError: no nn.Module, TorchScript, or a network whose weights are not there, as of lazy modules; says what
            to give instead.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model is {type(model).__name__}; give an nn.Module, such as the first of what "
            'load_model("torchvision:resnet18") returns'
        )
    model = unwrapped(model)
    for name, module in model.named_modules():
        _refuse(name, module)
    wrapped = any(unwrapped(module) is not module for module in model.modules())
    results = _results_kept(model)
    if not wrapped and not results and all(_is_plain(tensor) for tensor in _tensors(model)):
        return model
    own = copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in results})
    for module in list(own.modules()):
        for name, child in module.named_children():
            setattr(module, name, unwrapped(child))
    return own.float().cpu()


def unwrapped(model: nn.Module) -> nn.Module:
    """What torch.compile or DataParallel was called on."""
    while True:
        if COMPILED in model._modules:
            model = model.get_submodule(COMPILED)
        elif isinstance(model, PARALLEL):
            model = model.module
        else:
            return model


def dtype_of(model: nn.Module) -> torch.dtype:
    """The type that the network's weights have, which its inputs and outputs have, too."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _results_kept(model: nn.Module) -> list[torch.Tensor]:
    """Computed tensors that modules hold, which `deepcopy` refuses: of `nn.utils.weight_norm`, or the last output."""
    held = pytree.tree_leaves([vars(module) for module in model.modules()])
    return [value for value in held if isinstance(value, torch.Tensor) and value.grad_fn is not None]


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and (tensor.dtype == torch.float32 or not tensor.is_floating_point())


def _refuse(name: str, module: nn.Module) -> None:
    place = f"model.{name}" if name else "the model"
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelError(
            f"{place} is TorchScript, whose code cannot be captured; give the nn.Module it was made from, with its "
            "weights: net.load_state_dict(scripted.state_dict())"
        )
    if any(is_lazy(p) for p in (*module.parameters(recurse=False), *module.buffers(recurse=False))):
        raise ModelError(
            f"{place} ({type(module).__name__}) is lazy and has no weights yet; call model(example) once, and load its "
            "weights"
        )
    if any(p.is_meta for p in module.parameters(recurse=False)):
        raise ModelError(f'{place} is on the device "meta", without weights; load them first')
