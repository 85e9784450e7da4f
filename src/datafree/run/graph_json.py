"""A graph as JSON and back: data only, no code runs from a file. Tensors live in a safetensors file beside it."""

from __future__ import annotations

import keyword
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from datafree import graph as g
from datafree import student  # noqa: F401  registers torch.ops.quantized_decomposed
from datafree.graph import get_tensor, set_tensor
from datafree.messages import LineError, brief
from datafree.models import check_node
from datafree.run.nesting import NestingError, is_plain, nesting_from_json, nesting_to_json, spec_from_text

FORMAT = 1
OPS = ("placeholder", "get_attr", "call_function", "output")
NAMESPACES = ("aten", "quantized_decomposed", "datafree")
PLAIN = {f.__name__: f for f in (operator.getitem, operator.mul, operator.add, operator.sub, operator.floordiv,
                                 operator.truediv, operator.neg, operator.mod)}  # fmt: skip
IMPURE = ("aten::from_file", "aten::set_", "aten::_print")
KINDS = (torch.dtype, torch.device, torch.memory_format, torch.layout)


class FormatError(LineError):
    """A file that does not hold what this package writes."""


def graph_to_json(graph: fx.GraphModule) -> dict[str, Any]:
    """Nodes with operator names and arguments, and the structure of inputs and outputs."""
    nodes = [
        {"name": n.name, "op": n.op, "target": _target_name(n), "layer": g.note(n).layer, "v_o": g.note(n).v_o,
         "args": _encode(n.args), "kwargs": _encode(dict(n.kwargs)), "shape": list(g.shape(n))}
        for n in graph.graph.nodes
    ]  # fmt: skip
    info = g.pytree_of(graph)
    assert info.out_spec is not None, "capture writes it down"
    outputs = pytree.treespec_dumps(info.out_spec) if is_plain(info.out_spec) else None
    dtype = g.end_dtype(graph)
    return {
        "format": FORMAT,
        "nodes": nodes,
        "inputs": {"names": list(info.orig_args), "spec": pytree.treespec_dumps(info.in_spec)},
        "outputs": {"spec": outputs} if outputs else {"nesting": nesting_to_json(info.out_spec)},
        **({} if dtype == torch.float32 else {"ends": _encode(dtype)}),
    }


def tensors_of(graph: fx.GraphModule) -> dict[str, Tensor]:
    """Every tensor the graph reads, by path, contiguous and none sharing memory with another."""
    paths = dict.fromkeys(str(n.target) for n in graph.graph.nodes if n.op == "get_attr")
    return {p: get_tensor(graph, p).detach().clone(memory_format=torch.contiguous_format) for p in paths}


def graph_from_json(data: dict[str, Any], tensors: dict[str, Tensor]) -> fx.GraphModule:
    """Rebuild the module `graph_to_json` was given.

    Raises:
        FormatError: unknown format, an operator outside of ATen, a missing tensor.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else data
        raise FormatError(f"the graph has format {brief(found)}; this version reads {FORMAT}")
    root, graph = fx.GraphModule({}, fx.Graph()), fx.Graph()
    made: dict[str, fx.Node] = {}
    try:
        for item in data["nodes"]:
            made[item["name"]] = _make_node(graph, root, item, made, tensors)
        in_spec = spec_from_text(data["inputs"]["spec"])
        out = data["outputs"]
        out_spec = spec_from_text(out["spec"]) if "spec" in out else nesting_from_json(out["nesting"])
        dtype = _decode(data["ends"], {}) if "ends" in data else torch.float32
    except NestingError as error:
        raise FormatError(f"the graph is damaged: {error}; write the run again") from None
    except (KeyError, TypeError, IndexError, AttributeError, NotImplementedError) as error:
        raise FormatError(f"the graph is damaged: {type(error).__name__} {error}; write the run again") from None
    names = data["inputs"]["names"]
    for name in names:
        _check_name(name)
    graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(names, in_spec, out_spec)))
    if not isinstance(dtype, torch.dtype):
        raise FormatError(f"{dtype!r} is no type of numbers; the graph is damaged")
    return g.with_ends(fx.GraphModule(root, graph).eval(), dtype)


def _make_node(
    graph: fx.Graph,
    root: fx.GraphModule,
    item: dict[str, Any],
    made: dict[str, fx.Node],
    tensors: dict[str, Tensor],
) -> fx.Node:
    op, target = item["op"], item["target"]
    if op not in OPS or not isinstance(target, str):
        raise FormatError(
            f"node {brief(op)} {brief(target)} is not one this package writes; allowed are {', '.join(OPS)}"
        )
    for name in (item["name"], *([target] if op == "placeholder" else []), *item["kwargs"]["dict"]):
        _check_name(name)
    if op == "get_attr":
        _check_path(target)
        if target not in tensors:
            raise FormatError(
                f"tensor {target} is missing; the file beside the graph is another run's or was cut short"
            )
        set_tensor(root, target, tensors[target])
    args, kwargs = _decode(item["args"], made), _decode(item["kwargs"], made)
    callee: Any = _target(target) if op == "call_function" else target
    if callee is torch.ops.datafree.onnx_node.default:
        _check_onnx_node(args, kwargs)
    node = graph.create_node(op, callee, tuple(args), kwargs, name=item["name"])
    g.annotate(node, shape=tuple(item["shape"]), layer=item.get("layer"), v_o=item.get("v_o"))
    return node


def _check_onnx_node(args: list[Any], kwargs: dict[str, Any]) -> None:
    """A node of an ONNX file: nothing but an operator of ONNX's own, on tensors of the graph."""
    if kwargs or len(args) != 6 or not isinstance(args[2], str) or not isinstance(args[3], int):
        raise FormatError("a node of an ONNX file is damaged; write the run again")
    check_node(args[2], args[3])


def _check_name(name: object) -> None:
    """Names become Python source when torch.fx compiles the graph, so they must be nothing but names."""
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise FormatError(f"{name!r} is not a plain name; the graph is damaged or was made by something else")


def _check_path(path: str) -> None:
    if not path.isprintable() or re.search(r"[\"'\\]", path):  # nothing that could end a string in generated code
        raise FormatError(f"{path!r} is not the path of a tensor; the graph is damaged or was made by something else")


def _target_name(node: fx.Node) -> str:
    if node.op != "call_function":
        return str(node.target)
    if isinstance(node.target, torch._ops.OpOverload):
        return f"{node.target._schema.name.replace('::', '.')}.{node.target._overloadname}"
    return f"operator.{getattr(node.target, '__name__', node.target)}"


def _target(name: str) -> Callable:
    namespace, *rest = name.split(".")
    if namespace == "operator" and len(rest) == 1 and rest[0] in PLAIN:
        return PLAIN[rest[0]]
    if namespace in NAMESPACES and len(rest) == 2:
        overload = getattr(getattr(getattr(torch.ops, namespace), rest[0], None), rest[1], None)
        if isinstance(overload, torch._ops.OpOverload) and _is_pure(overload):
            return overload
    raise FormatError(
        f"operator {name!r} is not one this package writes; allowed are {', '.join(NAMESPACES)} operators"
    )


def _is_pure(overload: torch._ops.OpOverload) -> bool:
    """Tensors in, tensors or sizes out: no operator that opens files, prints or writes into its inputs.

    What PyTorch's dispatcher does not know is of TorchScript alone: `aten::save` writes a file anywhere.
    """
    schema = overload._schema
    is_tensor_operator = torch._C._dispatch_has_kernel(overload.name())
    return is_tensor_operator and not schema.is_mutable and schema.name not in IMPURE


def _encode(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, tuple | list):
        return [_encode(v) for v in value]
    if isinstance(value, dict):
        return {"dict": {k: _encode(v) for k, v in value.items()}}
    if isinstance(value, KINDS):
        return {"torch": str(value)}
    if isinstance(value, slice):
        return {"slice": [_encode(v) for v in (value.start, value.stop, value.step)]}
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return {"float": str(value)}
    assert value is None or isinstance(value, bool | int | float | str), f"cannot write {type(value)}"
    return value


def _decode(value: Any, made: dict[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(v, made) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "node":
        return made[inner]
    if kind == "dict":
        return {k: _decode(v, made) for k, v in inner.items()}
    if kind == "slice":
        return slice(*(_decode(v, made) for v in inner))
    if kind == "float":
        return float(inner)
    if kind != "torch" or not isinstance(inner, str):
        raise FormatError(f"a value of kind {kind!r} is not one this package writes")
    if inner in ("cpu", "cuda"):
        return torch.device(inner)
    found = getattr(torch, inner.removeprefix("torch."), None)
    if not isinstance(found, KINDS):
        raise FormatError(f"{inner!r} is not a torch dtype, layout or memory format")
    return found
