"""A network as a graph of PyTorch's own modules, which any package reads without the classes it was written in."""

from __future__ import annotations

import torch.nn.functional as F
from torch import fx, nn


def plain_modules(model: nn.Module) -> fx.GraphModule:
    """The same function; a convolution that a class of its own calls as a function becomes an `nn.Conv2d` again.

    Packages quantize layers that are modules, and leave functions in float.
    """
    traced = fx.symbolic_trace(model)
    for node in list(traced.graph.nodes):
        node.type = None  # annotations that are text cannot be pickled
        if node.op == "call_function" and node.target is F.conv2d:
            _as_module(traced, node)
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _as_module(traced: fx.GraphModule, node: fx.Node) -> None:
    x, weight, bias, stride, padding, dilation, groups = node.args
    w, b = (None if n is None else traced.get_parameter(n.target) for n in (weight, bias))
    layer = nn.Conv2d(
        w.shape[1] * groups, w.shape[0], w.shape[2:], stride, padding, dilation, groups, bias=b is not None
    )  # fmt: skip
    layer.weight, layer.bias = w, b
    name = weight.target.rpartition(".")[0] + "_plain"
    traced.add_submodule(name, layer.eval())
    with traced.graph.inserting_before(node):
        node.replace_all_uses_with(traced.graph.call_module(name, (x,)))
    traced.graph.erase_node(node)
