"""From the user's model to a clean ATen graph; the only file that knows torch.export."""

from __future__ import annotations

import contextlib
import copy
import inspect
import operator
import sys
import warnings
from collections import namedtuple
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, TextIO, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.fx.traceback import preserve_node_meta
from torch.utils import _pytree as pytree

from datafree.graph.annotations import annotate, note, operand, shape
from datafree.graph.layer_types import LAYER_TYPES, PADDED_BY_NAME, as_kept, set_parameters
from datafree.graph.operators import BATCH_NORM, argument, aten, operator_of
from datafree.graph.view import attribute, call, collect_garbage, get_tensor, map_args, pytree_of, tidy
from datafree.records import ORIGIN

Example = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
"""One input of a network, several, or several by their names in `forward`."""

_MAKERS = {
    aten.ones.default, aten.zeros.default, aten.full.default, aten.eye.default, aten.eye.m, aten.linspace.default,
    aten.arange.default, aten.arange.start, aten.arange.start_step,
}  # fmt: skip
"""Operators that make a tensor of nothing but numbers; where a size is that of the batch, it is made anew each time."""
_ASSERTIONS = ("_assert", "sym_constrain_range", "_guards_fn")


class CaptureError(ValueError):
    """A model that torch.export cannot turn into a graph, or holds what this package cannot rewrite."""


def tensors_in(example: Example) -> dict[str, Tensor]:
    """Inputs by their names; by their numbers where they have none."""
    if isinstance(example, dict):
        return example
    return {f"input {i}": x for i, x in enumerate(example if isinstance(example, tuple) else (example,))}


def trace(model: nn.Module, example: Example) -> fx.GraphModule:
    """Capture a private copy of `model`, in eval mode, as a functional ATen graph with the user's layer names.

    Every layer gets a weight and bias of its own at `{layer}.weight`, `{layer}.bias`, where `layer` is
    its path in the model; a module called twice gives `path` and `path@1`. `shape(node)` tells shapes
    for a batch of two; the batch dimension itself stays free. Inputs that were given by name are taken by name or by
    position; a dataclass that is returned becomes a named tuple of its fields.

    Args:
        model: any nn.Module; not changed.
        example: input(s) (N, ...); only shape and dtype are used.

    Raises:
        CaptureError: says what torch.export met, where, and what to do.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    model.register_forward_hook(_hand_over)
    examples = {name: _batch_of_two(x) for name, x in tensors_in(example).items()}
    args, kwargs = ((), examples) if isinstance(example, dict) else (tuple(examples.values()), {})
    try:
        exported = _export(model, args, kwargs).module()
    except CaptureError as error:
        raise CaptureError(f"{error}{_part_that_works(model, tuple(examples.values()))}") from error
    graph = fx.GraphModule(exported, exported.graph)
    if isinstance(example, dict):
        _by_position(graph, list(example))
    del model, exported  # their weights; large networks are not to be there three times
    _open_blocks(graph)
    graph.meta.clear()
    for node in graph.graph.nodes:
        known = _annotation(node)
        node.meta.clear()
        annotate(node, **known)
    _drop_assertions(graph)
    _drop_writes_to_buffers(graph)
    _make_functional(graph)
    _drop_identities(graph)
    _name_squeezed_dimensions(graph)
    _fold_constants(graph)
    _name_constant_padding(graph)
    _own_parameters(graph)
    tidy(graph)
    collect_garbage(graph)
    return graph.eval()


def _batch_of_two(x: Tensor) -> Tensor:
    return torch.zeros((2, *x.shape[1:]), dtype=x.dtype)


def _hand_over(module: nn.Module, inputs: Any, answer: Any) -> Any:
    """The `forward` hook of a network that is captured."""
    return _without_dataclasses(answer)


def _without_dataclasses(answer: Any) -> Any:
    """Named tuples in place of dataclasses, which torch.export does not take apart."""
    if is_dataclass(answer):
        record: Any = namedtuple(type(answer).__name__, [item.name for item in fields(answer)])
        return record(*(_without_dataclasses(getattr(answer, item.name)) for item in fields(answer)))
    if type(answer) in (tuple, list):
        return type(answer)(_without_dataclasses(value) for value in answer)
    if type(answer) is dict:
        return {key: _without_dataclasses(value) for key, value in answer.items()}
    return answer


def _by_position(graph: fx.GraphModule, names: list[str]) -> None:
    """Let inputs that were captured by name be given in their order, too."""
    spec = pytree.tree_structure((tuple(names), {}))
    graph.graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(names, spec, pytree_of(graph).out_spec)))


def _export(model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> torch.export.ExportedProgram:
    free = {name: {0: torch.export.Dim.DYNAMIC} for name in kwargs} if kwargs else _free_batch(model, args)
    quiet = contextlib.redirect_stderr(cast(TextIO, _WithoutGraphs(sys.stderr)))
    try:
        with torch.no_grad(), preserve_node_meta(), warnings.catch_warnings(), quiet:
            warnings.simplefilter("ignore")
            return torch.export.export(model, args, kwargs, dynamic_shapes=free, strict=False)
    except Exception as error:  # torch.export raises whatever the model's own forward raises
        kind = type(model).__name__
        shapes = ", ".join(str(tuple(x.shape)) for x in (*args, *kwargs.values()))
        raise CaptureError(
            f"{kind} cannot be captured with input {shapes}: {_first_line(error)}{_user_frame(error)}. "
            "The forward pass must be free of data-dependent Python branches and must accept any batch size "
            "(x.shape[0], not len(x)); check that model(example) runs and the example has the right shape"
        ) from error


class _WithoutGraphs:
    """stderr, but for the whole graph, which torch.export prints there when it fails."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._after_graph = stream, False

    def write(self, text: str) -> int:
        is_graph = "torch.ops." in text
        dropped, self._after_graph = is_graph or (self._after_graph and text == "\n"), is_graph
        return len(text) if dropped else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _part_that_works(model: nn.Module, examples: tuple[Tensor, ...]) -> str:
    """A hint where the largest part of a network can be captured by itself, as the backbone of a detector."""
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    largest = max(sizes, key=sizes.__getitem__, default="")
    if not largest or not sizes[largest]:
        return ""
    with contextlib.suppress(CaptureError):
        _export(model.get_submodule(largest), examples, {})
        return f". Its part {largest!r} can be: give model.{largest}, or MODEL#{largest} on the command line"
    return ""


def _free_batch(model: nn.Module, examples: tuple[Tensor, ...]) -> tuple[object, ...]:
    """That the first dimension of every input is free; inputs of `forward(x, *others)` are nested as it has them."""
    free = tuple({0: torch.export.Dim.DYNAMIC} for _ in examples)
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    named = kinds.index(inspect.Parameter.VAR_POSITIONAL) if inspect.Parameter.VAR_POSITIONAL in kinds else len(free)
    return (*free[:named], free[named:]) if named < len(free) else free


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:160].rstrip(".")


def _user_frame(error: Exception) -> str:
    """The innermost line of code outside of torch, as ' (at file:line in name)'."""
    place, frame = "", error.__traceback__
    while frame is not None:
        code = frame.tb_frame.f_code
        if "/torch/" not in code.co_filename and not code.co_filename.endswith("capture.py"):
            place = f" (at {code.co_filename}:{frame.tb_lineno} in {code.co_name})"
        frame = frame.tb_next
    return place


def _annotation(node: fx.Node) -> dict[str, object]:
    """Shape for a batch of two (or the value of a symbolic integer), and where the node was called."""
    value = node.meta.get("val")
    known: dict[str, object] = {"path": _module_path(node), "origin": (node.meta.get("custom") or {}).get(ORIGIN, "")}
    if isinstance(value, Tensor):
        return known | {"shape": tuple(_size(s) for s in value.shape)}
    return known | {"size": _size(value)} if isinstance(value, int | torch.SymInt) else known


def _size(value: int | torch.SymInt) -> int:
    return value if isinstance(value, int) else value.node.hint


def _module_path(node: fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {"": ("", "")}).values())
    return stack[-1][0]


def _open_blocks(graph: fx.GraphModule) -> None:
    """Put what is in blocks that do nothing in eval mode on the CPU in their place: no_grad, autocast that is off."""
    for node in list(graph.graph.nodes):
        if not (count := _num_settings(node)):
            continue
        body, given = operand(node, count), list(node.args[count + 1 :])
        block = cast(fx.GraphModule, graph.get_submodule(str(body.target)))
        _open_blocks(block)
        with graph.graph.inserting_before(node):
            results = _copied(block, str(body.target), given, graph.graph)
        for user in list(node.users):  # one of a tuple
            user.replace_all_uses_with(results[user.args[1]])
            graph.graph.erase_node(user)
        graph.graph.erase_node(node)
        if not body.users:
            graph.graph.erase_node(body)


def _copied(block: fx.GraphModule, path: str, given: list[Any], graph: fx.Graph) -> Any:
    """What a block's graph returns, once its nodes are in another one; what it reads lies at `path`."""
    operands, values = iter(given), {}
    for node in block.graph.nodes:
        if node.op == "output":
            return map_args(node.args[0], values)
        values[node] = next(operands) if node.op == "placeholder" else graph.node_copy(node, values.__getitem__)
        if node.op == "get_attr":
            values[node].target = f"{path}.{node.target}"
    raise AssertionError("a graph ends in what it returns")


def _num_settings(node: fx.Node) -> int:
    """How many arguments of a block say what it is; 0 where it is none that does nothing."""
    if node.target is torch.ops.higher_order.wrap_with_set_grad_enabled:
        return 1
    is_autocast = node.target is torch.ops.higher_order.wrap_with_autocast
    return 4 if is_autocast and (node.args[0] != "cpu" or not node.args[2]) else 0


def _drop_assertions(graph: fx.GraphModule) -> None:
    for node in list(graph.graph.nodes):
        if any(word in str(node.target) for word in _ASSERTIONS):
            graph.graph.erase_node(node)
        elif isinstance(node.target, torch._ops.HigherOrderOperator):
            raise CaptureError(
                f"{note(node).path or 'the model'}: {node.target} wraps a part of the network that cannot be looked "
                "into; remove the autocast, checkpoint or control-flow block around it"
            )


def _drop_identities(graph: fx.GraphModule) -> None:
    """Remove what does nothing in eval mode; only after in-place operators are gone, for some are copies."""
    for node in list(graph.graph.nodes):
        if operator_of(node).identity and not (len(node.args) > 2 and node.args[2] is True):  # dropout that trains
            node.replace_all_uses_with(operand(node))
            graph.graph.erase_node(node)


def _name_constant_padding(graph: fx.GraphModule) -> None:
    """pad(x, pads, "constant", value) as constant_pad_nd, which padding with zeros means elsewhere too."""
    for node in graph.graph.nodes:
        if node.target is aten.pad.default and argument(node, "mode") == "constant":
            node.args, node.kwargs = (*node.args[:2], argument(node, "value") or 0.0), {}
            node.target = aten.constant_pad_nd.default


def _name_squeezed_dimensions(graph: fx.GraphModule) -> None:
    """squeeze(x) as squeeze(x, dimensions), those of one entry where there are two images: never that of the images."""
    for node in graph.graph.nodes:
        if node.target is aten.squeeze.default:
            node.args = (operand(node), [i for i, size in enumerate(shape(operand(node))) if size == 1])
            node.target = aten.squeeze.dims


# ---- in-place operators


def _drop_writes_to_buffers(graph: fx.GraphModule) -> None:
    """Leave out what forward writes into buffers that its answer does not read, as counters and running means."""
    read, todo = set(), [graph.graph.output_node()]
    while todo:
        read.update(new := {n for n in todo.pop().all_input_nodes if n not in read})
        todo.extend(new)
    for node in reversed(list(graph.graph.nodes)):
        owner = _owner(node) if _writes(node) else node
        if owner is node or owner.op != "get_attr":
            continue
        if owner in read:
            raise CaptureError(
                f"forward writes into the buffer {owner.target!r} ({node.target}) and reads it, so that an answer "
                "would depend on those before; leave it as it is in eval mode: if self.training"
            )
        node.replace_all_uses_with(operand(node))
        graph.graph.erase_node(node)


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _owner(node: fx.Node) -> fx.Node:
    """Whose memory a call writes into: through views, and what was written before."""
    while _writes(node) or _is_view(node):
        node = operand(node)
    return node


def _make_functional(graph: fx.GraphModule) -> None:
    """Replace `relu_(x)` by `relu(x)` and let everything that reads x later read the result."""
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    for node in list(graph.graph.nodes):
        if not _writes(node):
            continue
        changed = operand(node)
        aliases = _aliases(changed)
        late = [u for a in aliases for u in a.users if order.get(u, -1) > order[node] and a is not changed]
        functional = _functional(node.target)
        if late or functional is None or changed.op == "get_attr":
            raise CaptureError(
                f"{note(node).path or 'the model'}: {node.target} writes into a tensor that is also read elsewhere; "
                "use the operator that returns a new tensor there"
            )
        changed.replace_all_uses_with(node, delete_user_cb=lambda u, at=order[node]: order.get(u, at) > at)
        node.target = functional


def _functional(target: torch._ops.OpOverload) -> Callable | None:
    packet, overload = target._schema.name.removeprefix("aten::"), target._overloadname
    return getattr(getattr(aten, packet.rstrip("_"), None), overload, None) if packet.endswith("_") else None


def _aliases(node: fx.Node) -> set[fx.Node]:
    """All nodes that may share memory with `node` through views."""
    seen, todo = {node}, [node]
    while todo:
        here = todo.pop()
        for other in [*([operand(here)] if _is_view(here) else []), *(u for u in here.users if _is_view(u))]:
            if other not in seen:
                seen.add(other)
                todo.append(other)
    return seen


def _is_view(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(r.alias_info and not r.alias_info.is_write for r in schema.returns)


# ---- constants and parameters


def _fold_constants(graph: fx.GraphModule) -> None:
    """Compute once what depends on parameters and numbers alone (standardised weights, lifted tensors, masks)."""
    values: dict[fx.Node, Tensor] = {}
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            values[node] = get_tensor(graph, node.target)
        elif node.op == "call_function" and all(n in values for n in node.all_input_nodes):
            if not (node.all_input_nodes or node.target in _MAKERS):
                continue
            value = call(node, *map_args(node.args, values), **map_args(node.kwargs, values))
            if isinstance(value, Tensor):
                with graph.graph.inserting_before(node):
                    new = attribute(graph, f"constant_{node.name}", value)
                annotate(new, path=_origin(node) or note(node).path)
                values[new] = value
                node.replace_all_uses_with(new)
            else:
                values[node] = value


def _origin(node: fx.Node) -> str:
    """The module whose weight is only moved about here: of fc.weight[:, :, None, None], fc; "" where there is none."""
    if not node.all_input_nodes:
        return ""
    source = node.all_input_nodes[0]
    moved = operator_of(node).channels == "moves" and source.op == "get_attr"
    return note(source).path or str(source.target).removesuffix(".weight") if moved else ""


def _own_parameters(graph: fx.GraphModule) -> None:
    """Give every layer its own weight and bias, and bring its arguments into one full form."""
    taken: dict[str, int] = {}
    known = {str(n.target) for n in graph.graph.nodes if n.op == "get_attr"}
    for node in list(graph.graph.nodes):
        if node.target in PADDED_BY_NAME:
            _explicit_padding(graph, node)
        if node.target not in LAYER_TYPES or not _is_constant(node.args[1]):
            continue
        source = node.args[1]
        value, offset = get_tensor(graph, source.target), argument(node, "bias")
        path = _layer_name(node, source, known)
        count = taken.setdefault(path, 0)
        taken[path] += 1
        name = path if count == 0 else f"{path}@{count}"
        if offset is not None and not _is_constant(offset):
            continue
        value = as_kept(node, value)
        offset = torch.zeros(value.shape[0]) if offset is None else get_tensor(graph, offset.target)
        with graph.graph.inserting_before(node):
            weight = attribute(graph, f"{name}.weight", value.clone(memory_format=torch.contiguous_format))
            bias = attribute(graph, f"{name}.bias", offset.clone())
        settings = (argument(node, known.name) for known in node.target._schema.arguments[3:])
        node.args, node.kwargs = (operand(node), weight, bias, *settings), {}
        set_parameters(node, weight, bias)
        annotate(node, layer=name)


def _is_constant(node: object) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr"


def _layer_name(node: fx.Node, source: fx.Node, known: set[str]) -> str:
    """The path of the module that is called, where the weight is its own; else the parameter's path."""
    called, path = note(node).path, str(source.target)
    for own in (called, note(source).path):
        if f"{own}.weight" in known:
            return own
    if path.endswith(".weight"):
        return path.removesuffix(".weight")
    return called or (node.name if path.startswith(("constant_", "lifted_tensor_")) else path)


def _explicit_padding(graph: fx.GraphModule, node: fx.Node) -> None:
    """A convolution with padding "same" or "valid", as numbers; what is not symmetric is padded in front of it."""
    stride, mode, dilation, groups = (argument(node, n) for n in ("stride", "padding", "dilation", "groups"))
    x, w, b = operand(node), operand(node, 1), argument(node, "bias")
    total = [d * (k - 1) if mode == "same" else 0 for d, k in zip(dilation, shape(w)[2:], strict=True)]
    if any(t % 2 for t in total):
        pads = [p for t in reversed(total) for p in (t // 2, t - t // 2)]
        sides = [side + t for side, t in zip(shape(x)[2:], total, strict=True)]
        with graph.graph.inserting_before(node):
            x = graph.graph.call_function(aten.constant_pad_nd.default, (x, pads, 0.0))
        annotate(x, shape=(*shape(operand(node))[:2], *sides), path=note(node).path)
        total = [0] * len(total)
    node.target = PADDED_BY_NAME[node.target]
    node.args = (x, w, b, stride, [t // 2 for t in total], dilation, groups)


def batch_norms(graph: fx.GraphModule) -> list[fx.Node]:
    """Batch normalisations that use running statistics: batch_norm(x, gamma, beta, mean, var, False, ...)."""
    return [
        n
        for n in graph.graph.nodes
        if n.target is BATCH_NORM and not n.args[5] and all(a is None or _is_constant(a) for a in n.args[1:5])
        and n.args[3] is not None
    ]  # fmt: skip
