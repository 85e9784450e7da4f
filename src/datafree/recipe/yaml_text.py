"""YAML that a recipe may be made of: plain values, of a size that a person or a program writes."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import yaml

from datafree.messages import one_line
from datafree.recipe.parts import RecipeError

MOST_CHARACTERS, MOST_VALUES, DEEPEST = 2**20, 100_000, 32


def read_yaml(text: str, *, source: str) -> Any:
    """The values of a YAML text, by the safe loader.

    Aliases may be used, but what they stand for counts each time: few lines of them can stand for billions of values.

    Raises:
        RecipeError: it is no YAML, or too long, too deep or too much; one line.
    """
    if len(text) > MOST_CHARACTERS:
        raise RecipeError(f"{source} has more than {MOST_CHARACTERS} characters, which no recipe has; is it one?")
    if _brackets(text) > 2 * DEEPEST:  # the parser would take minutes
        raise RecipeError(f"{source} {_TOO_DEEP}")
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            _values_of(node, {}, ())
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except RecipeError as error:
        raise RecipeError(f"{source} {error}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{source} is not YAML: {one_line(str(error))}") from None
    except RecursionError:
        raise RecipeError(f"{source} {_TOO_DEEP}") from None
    except Exception as error:  # its loader raises anything from KeyError to AttributeError for a tag that does not fit
        reason = f"{type(error).__name__}: {error}"
        raise RecipeError(f"{source} is not YAML, a value in it makes no sense ({reason}); write it anew") from None


def _brackets(text: str) -> int:
    """How many brackets are open at most, those in words too."""
    steps = (1 if x in "[{" else -1 for x in text if x in "[]{}")
    return max(accumulate(steps), default=0)


_TOO_DEEP = (
    f"is nested too deeply; a recipe has at most {DEEPEST} levels, as 'layers: {{conv: {{weights: {{bits: 4}}}}}}'"
)


def _values_of(node: Any, known: dict[int, int], above: tuple[int, ...]) -> int:
    """How many values a node stands for, aliases written out."""
    if id(node) in above:
        raise RecipeError("holds a value that contains itself; write it without that alias")
    if len(above) > DEEPEST:
        raise RecipeError(_TOO_DEEP)
    if id(node) not in known:
        children = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = (part for child in children for part in (child if isinstance(child, tuple) else (child,)))
        known[id(node)] = 1 + sum(_values_of(part, known, (*above, id(node))) for part in parts)
        if known[id(node)] > MOST_VALUES:
            raise RecipeError(f"holds more than {MOST_VALUES} values once its aliases are written out; write fewer")
    return known[id(node)]
