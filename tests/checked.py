"""Types and shapes are checked while tests run, and no call pays for shapes that its function does not name.

jaxtyping binds the arguments of every call, for the sizes that annotations share: where no annotation has a shape, that
was a fifth of the suite's time. There the type checker checks alone.
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


def names_shapes(function):
    """Whether one of its annotations has a shape, or cannot be told yet."""
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception:  # a name that is imported for other checkers alone, a shape that jaxtyping cannot read
        return True
    return has_shape([*hints.values()])


def checked(*, typechecker):
    """The decorator that jaxtyping's import hook puts on every function and class, in place of `jaxtyping.jaxtyped`."""

    def decorate(decorated):
        function = decorated.__init__ if is_dataclass(decorated) else decorated
        if not inspect.isfunction(function) or names_shapes(function):
            return with_shapes(decorated, typechecker=typechecker)
        if function is decorated:
            return typechecker(function)
        decorated.__init__ = typechecker(function)
        return decorated

    return decorate
