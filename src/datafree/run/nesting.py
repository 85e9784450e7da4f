"""How answers are nested, as JSON and back: tuples, lists, dictionaries, and records of named fields."""

from __future__ import annotations

import json
import keyword
from collections import namedtuple
from typing import Any

from torch.utils import _pytree as pytree

from datafree.messages import brief

LEAF = "*"


class NestingError(ValueError):
    """What was written is no nesting."""


def is_plain(spec: pytree.TreeSpec) -> bool:
    """Whether there is nothing but tuples, lists and dictionaries, which torch writes down itself."""
    if spec.is_leaf():
        return True
    return spec.type in (tuple, list, dict) and all(is_plain(spec.child(i)) for i in range(spec.num_children))


def spec_from_text(text: str) -> pytree.TreeSpec:
    """What `torch.utils._pytree.treespec_dumps` wrote of tuples, lists and dictionaries.

    torch reads more than these, and imports modules that the text names; here nothing is looked up.

    Raises:
        NestingError: it holds anything else.
    """
    protocol, outer = json.loads(text)
    if protocol != 1:
        raise NestingError(f"it is written in the form {protocol!r} of torch, and 1 is read")
    return pytree.tree_structure(_values(outer))


def _values(spec: Any) -> Any:
    """Values nested as a spec says."""
    kind, context, children = spec["type"], spec["context"], [_values(child) for child in spec["children_spec"]]
    if kind is None and context is None and not children:
        return LEAF
    if not isinstance(context, str):
        raise NestingError(f"{brief(kind)} with {brief(context)} is no tuple, list or dictionary")
    if kind in ("builtins.tuple", "builtins.list") and json.loads(context) is None:
        return children if kind == "builtins.list" else tuple(children)
    if kind == "builtins.dict":
        return dict(zip(json.loads(context), children, strict=True))
    raise NestingError(f"{brief(kind)} with {brief(context)} is no tuple, list or dictionary")


def nesting_to_json(spec: pytree.TreeSpec) -> Any:
    """Named tuples become records; dictionaries of any kind, dictionaries."""
    return _encode(pytree.tree_unflatten([LEAF] * spec.num_leaves, spec))


def nesting_from_json(data: Any) -> pytree.TreeSpec:
    """The same nesting; a record is a named tuple of its name and fields, made anew.

    Raises:
        NestingError: it was not written by `nesting_to_json`.
    """
    return pytree.tree_structure(_decode(data))


def _encode(value: Any) -> Any:
    if pytree.is_namedtuple_instance(value):
        return {"record": type(value).__name__, "fields": {n: _encode(getattr(value, n)) for n in value._fields}}
    if isinstance(value, dict):
        return {"dict": [[key, _encode(x)] for key, x in value.items()]}
    if isinstance(value, tuple | list):
        return {type(value).__name__: [_encode(x) for x in value]}
    return LEAF


def _decode(data: Any) -> Any:
    if data == LEAF:
        return LEAF
    kind = next(iter(data), None) if isinstance(data, dict) else None
    if kind == "record":
        names = [data["record"], *data["fields"]]
        if not all(isinstance(n, str) and n.isidentifier() and not keyword.iskeyword(n) for n in names):
            raise NestingError(f"{names} are no plain names")
        values = {name: _decode(x) for name, x in data["fields"].items()}
        return namedtuple(names[0], names[1:])(**values)
    if kind == "dict":
        return {key: _decode(x) for key, x in data["dict"]}
    if kind in ("tuple", "list"):
        return {"tuple": tuple, "list": list}[kind](_decode(x) for x in data[kind])
    raise NestingError(f"{data!r} is no nesting of answers")
