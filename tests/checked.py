"""Types and shapes are checked while tests run: once a call, and no call pays for shapes that its function lacks.

jaxtyping binds the arguments of every call, for the sizes that annotations share, and checks them again with the
result: a fifth of the suite's time.
"""

from __future__ import annotations

import inspect
import typing
from dataclasses import is_dataclass

import jaxtyping

with_shapes = jaxtyping.jaxtyped


def has_shape(hint):
    """Whether a resolved annotation holds one of jaxtyping's, however deep."""
    if isinstance(hint, list | tuple):
        return any(map(has_shape, hint))
    return (inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)) or has_shape(typing.get_args(hint))


def one_check(function, typechecker):
    """The function, whose types are checked at every call, and its shapes where it names any.

    jaxtyping would check all arguments a second time with the result.
    """
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception:  # a name that is imported for other checkers alone, a shape that jaxtyping cannot read
        return with_shapes(function, typechecker=typechecker)
    if not has_shape([*hints.values()]):
        return typechecker(function)
    if inspect.isgeneratorfunction(function):  # which a type checker looks at when it begins, among its reader's sizes
        return with_shapes(function, typechecker=typechecker)
    return with_shapes(typechecker(function), typechecker=None)


def checked(*, typechecker):
    """The decorator that jaxtyping's import hook puts on every function and class, in place of `jaxtyping.jaxtyped`."""

    def decorate(decorated):
        if is_dataclass(decorated) and "__init__" in vars(decorated):
            decorated.__init__ = one_check(decorated.__init__, typechecker)
            return decorated
        return one_check(decorated, typechecker) if inspect.isfunction(decorated) else decorated

    return decorate
