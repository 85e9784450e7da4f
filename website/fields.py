"""Fields of records as a list in the reference: what the docstring says of them, else the comment beside them."""

from __future__ import annotations

import re
from typing import Any

import griffe

DESCRIBED = re.compile(r"^(\w+(?:, \w+)*): ", re.MULTILINE)


class Fields(griffe.Extension):
    """Of every dataclass, before its docstring is rendered."""

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        if cls.docstring and any("dataclass" in str(d.value) for d in cls.decorators):
            fields = {n: m for n, m in cls.members.items() if isinstance(m, griffe.Attribute) and n[0] != "_"}
            cls.docstring.value = with_fields(cls.docstring.value, fields)


def with_fields(text: str, fields: dict[str, griffe.Attribute]) -> str:
    """The docstring with its lines `name: what it is` as a list, and the fields that it leaves out below."""
    described: set[str] = set()

    def item(match: re.Match[str]) -> str:
        names = match[1].split(", ")
        if not described.issuperset(names) and fields.keys() >= set(names):
            described.update(names)
            return "\n- " + ", ".join(f"`{name}`" for name in names) + ": "
        return match[0]

    text = DESCRIBED.sub(item, text)
    return text + "\n\n" + "\n".join(_item(n, f) for n, f in fields.items() if n not in described)


def _item(name: str, field: griffe.Attribute) -> str:
    comment = (field.source or "").partition("  # ")[2].strip()
    return f"- `{name}`: `{field.annotation}`" + (f", {comment}" if comment else "")
