"""How answers are nested, as JSON and back: tuples, lists, dictionaries, and records of named fields."""

from __future__ import annotations

import keyword
from collections import namedtuple
from typing import Any

from torch.utils import _pytree as pytree

LEAF = "*"


class NestingError(ValueError):
    """What was written is no nesting."""


def is_plain(spec: pytree.TreeSpec) -> bool:
    """Whether there is nothing but tuples, lists and dictionaries, which torch writes down itself."""
    if spec.is_leaf():
        return True
    return spec.type in (tuple, list, dict) and all(is_plain(spec.child(i)) for i in range(spec.num_children))


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
