"""What sections of a recipe are made of: frozen records, some of which come in kinds."""

from __future__ import annotations

from functools import cache, reduce
from operator import or_
from typing import Annotated, Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from datafree.messages import LineError

Bits = Annotated[int, Field(ge=2, le=8)]


class RecipeError(LineError):
    """A recipe that cannot be used: an unknown key, a value out of range, a preset that does not exist."""


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Choice(Part):
    """A part of which there are several kinds, one class each, here or in any other file: defined, it can be chosen."""

    kinds: ClassVar[dict[str, type[Choice]]]  # by the word that chooses them
    tag: ClassVar[str]  # the field that holds that word
    usual: ClassVar[str]  # the word where a recipe has none

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        if "kinds" in vars(cls):  # a part by itself
            return
        mine, field = _path(cls), cls.model_fields[cls.tag]
        if get_args(field.annotation) != (field.default,):
            raise RecipeError(f'{mine} has no name; give it one, as {cls.tag}: Literal["name"] = "name"')
        other = _path(cls.kinds.get(field.default, cls))
        if other != mine:
            raise RecipeError(f"{mine}: {cls.tag} {field.default!r} is that of {other}; choose another name")
        cls.kinds[field.default] = cls  # of a file that ran again, the class of today

    @classmethod
    def chosen(cls, value: Any) -> Any:
        """The record of the kind that a recipe's mapping asks for."""
        fields = {cls.tag: cls.usual, **value} if isinstance(value, dict) else value
        return _one_of(tuple(cls.kinds.values()), cls.tag).validate_python(fields)


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


@cache
def _one_of(kinds: tuple[type[Choice], ...], tag: str) -> TypeAdapter:
    union: Any = Annotated[reduce(or_, kinds), Field(discriminator=tag)]
    return TypeAdapter(union)
