"""Recipes written before names changed."""

from __future__ import annotations

import warnings
from typing import Any

METHODS = {"closed": "gptq", "sgd": "straight_through"}  # what methods were called before
FIRST_LAST = {"eight": 8, "alike": "same"}  # values of `ends`, which is now `first_last`


def with_new_names(fields: dict[str, Any]) -> dict[str, Any]:
    """Recipes written before names changed are still read, with a warning."""
    fields = dict(fields)
    if "ends" in fields:
        old = fields.pop("ends")
        new = fields["first_last"] = FIRST_LAST.get(old, old) if isinstance(old, str) else old
        _warn(f"ends: {old}", f"first_last: {new}")
    solve = fields.get("solve")
    if isinstance(solve, dict) and "method" in solve:
        fields["solve"] = {**solve, "method": new_method(solve["method"])}
    return fields


def new_method(name: Any) -> Any:
    if isinstance(name, str) and name in METHODS:
        _warn(f"solve.method: {name}", f"solve.method: {METHODS[name]}")
        return METHODS[name]
    return name


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is now called {new}; please change the recipe", FutureWarning, stacklevel=4)
