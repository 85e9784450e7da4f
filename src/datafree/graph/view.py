"""The ATen graph as the rest of the package sees it: layers, tensors, shapes, walking, rewriting."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.fx.node import map_arg

from datafree.execution import add_layer_macs, give_back_memory
from datafree.graph.annotations import annotate, layer_name, note, operand, shape
from datafree.graph.layer_types import LAYER_TYPES, as_called, read_layer
from datafree.graph.operators import aten, operator_of
from datafree.records import Layer

LARGE = 2**26  # bytes of weights


def layers(graph: fx.GraphModule) -> dict[str, Layer]:
    """Every layer whose weight is its own parameter, by name, in execution order."""
    return {layer_name(node): read_layer(node) for node in graph.graph.nodes if note(node).layer}


def layers_with_v_o(graph: fx.GraphModule) -> set[str]:
    """Names of the layers whose outputs are multiplied by a v_o: they have a multiplier a channel."""
    return {name for node in graph.graph.nodes if (name := note(node).v_o)}


def node_of(graph: fx.GraphModule, name: str) -> fx.Node:
    """The graph node called `name`."""
    return next(n for n in graph.graph.nodes if n.name == name)


def graph_of(node: fx.Node) -> fx.GraphModule:
    """The module whose graph a node is in."""
    owner = node.graph.owning_module
    assert owner is not None, "a captured graph has a module"
    return owner


def nodes_by_name(graph: fx.GraphModule) -> dict[str, fx.Node]:
    return {n.name: n for n in graph.graph.nodes}


def weight(graph: fx.GraphModule, layer: Layer) -> Tensor:
    """(C_out, C_in/groups, kh, kw) or (C_out, C_in)."""
    return get_tensor(graph, f"{layer.name}.weight")


def bias(graph: fx.GraphModule, layer: Layer) -> Tensor:
    """(C_out,); capture gives every layer a bias."""
    return get_tensor(graph, f"{layer.name}.bias")


def grouped(weight: Tensor, groups: int) -> Tensor:
    """Weights as rows: (groups, C_out/groups, n), n = taps of one output channel."""
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def num_macs(node: fx.Node) -> int:
    """Multiply-adds of a layer for one image."""
    x, y = ((1, *shape(tensor)[1:]) for tensor in (operand(node), node))
    return LAYER_TYPES[node.target].macs(shape(operand(node, 1)), x, y)


def layer_macs(graph: fx.GraphModule) -> dict[str, int]:
    """Multiply-adds of every layer for one image."""
    nodes = nodes_by_name(graph)
    return {name: num_macs(nodes[layer.node]) for name, layer in layers(graph).items()}


def num_parameters(graph: fx.GraphModule) -> int:
    """Weights and biases of all layers."""
    return sum(weight(graph, layer).numel() + bias(graph, layer).numel() for layer in layers(graph).values())


def duplicate(graph: fx.GraphModule) -> fx.GraphModule:
    """A graph of its own with the same node names and the same tensors (which nobody writes into)."""
    new, made = fx.Graph(), {}
    result = new.graph_copy(graph.graph, made, return_output_node=True)
    assert isinstance(result, tuple)
    output = result[1]
    assert isinstance(output, fx.Node), "a graph has an output"
    new.output(result[0]).meta = dict(output.meta)
    new.set_codegen(graph.graph._codegen)
    return fx.GraphModule(graph, new).eval()


def is_large(graph: fx.GraphModule) -> bool:
    """Whether memory that lies free is worth the time that it takes to give it back."""
    return 4 * num_parameters(graph) > LARGE


def collect_garbage(graph: fx.GraphModule) -> None:
    """Let go of the weights that other graphs of a large network held: graphs refer to themselves, in circles."""
    if is_large(graph):
        gc.collect()
        give_back_memory()


def with_weights(graph: fx.GraphModule, weights: dict[str, Tensor]) -> fx.GraphModule:
    """A graph of its own with other weights, by layer name; as rows or in the layer's own shape."""
    new = duplicate(graph)
    for name, weight in weights.items():
        set_tensor(new, f"{name}.weight", weight.view_as(get_tensor(graph, f"{name}.weight")))
    return new


# ---- tensors by their path


def get_tensor(graph: fx.GraphModule, path: str) -> Tensor:
    """The parameter, buffer or attribute at a dotted path."""
    parent, _, name = path.rpartition(".")
    return getattr(graph.get_submodule(parent), name)


def tensor_of(graph: fx.GraphModule, node: fx.Node) -> Tensor:
    """The tensor that a get_attr node reads."""
    return get_tensor(graph, str(node.target))


def set_tensor(graph: fx.GraphModule, path: str, value: Tensor) -> None:
    """Put a tensor at a dotted path as a buffer, making the modules on the way."""
    module: torch.nn.Module = graph
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in module._modules:
            module.add_module(parent, torch.nn.Module())
        module = module.get_submodule(parent)
    module._parameters.pop(name, None)
    if hasattr(module, name):
        delattr(module, name)
    module.register_buffer(name, value.detach())


def attribute(graph: fx.GraphModule, path: str, value: Tensor) -> fx.Node:
    """A get_attr node for a new tensor, at the graph's current insertion point."""
    set_tensor(graph, path, value)
    node = graph.graph.get_attr(path)
    annotate(node, shape=tuple(value.shape))
    return node


def insert_after(graph: fx.GraphModule, node: fx.Node, target: Callable[..., Any], path: str, value: Tensor) -> fx.Node:
    """Insert `target(node, value)` behind `node` for all of its users; `value` is stored at `path`."""
    users = list(node.users)
    with graph.graph.inserting_after(node):
        constant = attribute(graph, path, value)
    with graph.graph.inserting_after(constant):
        new = graph.graph.call_function(target, (node, constant))
    annotate(new, shape=shape(node))
    for user in users:
        user.replace_input_with(node, new)
    return new


def scale_input(graph: fx.GraphModule, layer: fx.Node, path: str, factor: Tensor) -> None:
    """Multiply what enters `layer` by the constant `factor`, stored at `path`."""
    source = operand(layer)
    with graph.graph.inserting_before(layer):
        new = graph.graph.call_function(aten.mul.Tensor, (source, attribute(graph, path, factor)))
    annotate(new, shape=shape(source), v_i=path.removesuffix(".v_i"))
    layer.args = (new, *layer.args[1:])


def scale_output(graph: fx.GraphModule, layer: fx.Node, path: str, factor: Tensor) -> fx.Node:
    """Multiply what leaves `layer` by the constant `factor`, stored at `path`, for all that read it."""
    return insert_after(graph, layer, aten.mul.Tensor, path, factor)


def insert_affine(graph: fx.GraphModule, node: fx.Node, path: str, scale: Tensor, shift: Tensor) -> fx.Node:
    """`x * scale + shift` in front of `node`, x its input; stored at `path`.scale and `path`.shift."""
    with graph.graph.inserting_before(node):
        a, t = attribute(graph, f"{path}.scale", scale), attribute(graph, f"{path}.shift", shift)
        product = graph.graph.call_function(aten.mul.Tensor, (operand(node), a))
        total = graph.graph.call_function(aten.add.Tensor, (product, t))
    for new in (product, total):
        annotate(new, shape=shape(node), affine=path)
    return total


def fingerprint(graph: fx.GraphModule) -> str:
    """Sixteen hexadecimal digits that change with any weight, statistic or name."""
    digest = hashlib.sha256()
    for name, value in sorted(graph.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def tidy(graph: fx.GraphModule) -> None:
    """Drop nodes nobody uses and tensors no node reads; recompile."""
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    used = {n.target for n in graph.graph.nodes if n.op == "get_attr"}
    for path, _ in [
        *graph.named_parameters(remove_duplicate=False),
        *graph.named_buffers(remove_duplicate=False),
    ]:
        if path not in used:
            parent, _, name = path.rpartition(".")
            delattr(graph.get_submodule(parent), name)
    graph.graph.lint()
    graph.recompile()


def pytree_of(graph: fx.GraphModule) -> _PyTreeInfo:
    """How the arguments and the answer of a captured graph are nested."""
    codegen = graph.graph._codegen
    assert isinstance(codegen, _PyTreeCodeGen), "a captured graph knows the structure of its inputs and outputs"
    return codegen.pytree_info


# ---- running


def walk(graph: fx.GraphModule, inputs: tuple[Tensor, ...]) -> Iterator[tuple[fx.Node, dict[fx.Node, Any]]]:
    """Yield (node, values) for every input and every call in execution order, with the call's inputs in `values`.

    The caller may put the node's own value into `values`; what it leaves out is executed when the walk goes on.
    A value is freed after its last use; those the graph returns are kept until the end.
    """
    last_use = {used: node for node in graph.graph.nodes for used in node.all_input_nodes}
    values: dict[fx.Node, Any] = {}
    feed = iter(inputs)
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(feed)
        elif node.op == "get_attr":
            values[node] = get_tensor(graph, node.target)
            continue
        elif node.op == "output":
            return
        yield node, values
        if node not in values:  # placeholders have theirs
            values[node] = execute(node, values)
        for used in node.all_input_nodes:
            if last_use[used] is node:
                values.pop(used, None)
        if node not in last_use:
            values.pop(node, None)


def call(node: fx.Node, *args: Any, **kwargs: Any) -> Any:
    """What the operator of a call gives for other arguments."""
    assert callable(node.target), f"{node.name} is a call"
    return node.target(*args, **kwargs)


def map_args(args: Any, values: Mapping[fx.Node, Any]) -> Any:
    """Arguments of a call with values in place of nodes."""
    return map_arg(args, values.__getitem__)


def execute(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """Run one call on the values of its inputs."""
    args, kwargs = map_args(node.args, values), map_args(node.kwargs, values)
    value = call(node, *args, **kwargs)
    if (kind := LAYER_TYPES.get(node.target)) is not None:
        x, weight = args[:2]
        add_layer_macs(kind.macs(weight.shape, x.shape, value.shape), x, weight, value)
    return value


def is_by_image(node: fx.Node) -> bool:
    """Whether a call that reads tensors (N, ...) gives, for some of their rows, these rows of its result."""
    row = operator_of(node)
    if node.target in (aten.constant_pad_nd.default, aten.pad.default):
        pads: Any = node.args[1]
        return len(pads) < 2 * len(shape(node))  # from the last dimension back, never as far as the images
    return (
        node.target in LAYER_TYPES or node.target is aten.layer_norm.default or row.elementwise or row.over == "space"
    )


def run_layer(node: fx.Node, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A layer's output for another input, weight (C_out, C_in/groups, *kernel) and bias."""
    return execute(node, {operand(node): x, operand(node, 1): as_called(node, weight), operand(node, 2): bias})


def first_output(graph: fx.GraphModule, inputs: tuple[Tensor, ...]) -> Tensor:
    """Run the graph up to its first output; unlike a call of the graph, its multiply-adds are counted."""
    wanted = outputs(graph)[0]
    for node, values in walk(graph, inputs):
        if node is wanted:
            return values[node] if node in values else execute(node, values)
    raise AssertionError("a graph has an output")


def outputs(graph: fx.GraphModule) -> list[fx.Node]:
    """The nodes whose values the graph returns."""
    return list(next(n for n in reversed(graph.graph.nodes) if n.op == "output").all_input_nodes)


def placeholders(graph: fx.GraphModule) -> list[fx.Node]:
    """The graph's inputs in the order of its flattened arguments."""
    return [n for n in graph.graph.nodes if n.op == "placeholder"]
