"""Shapes and types are checked while tests run: those that `checked` leaves to the type checker alone, too."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from beartype import beartype
from jaxtyping import Float
from torch import Tensor

from checked import checked
from datafree.graph import shape
from datafree.quantization import rounded_rows

check = checked(typechecker=beartype)


@check
def plain(count: int, *names: str, **more: float) -> str:
    return "a" if count else 1  # type: ignore


@check
def shaped(a: Float[Tensor, "n m"], b: list[Float[Tensor, " m"]] | None = None) -> int:
    return len(a)


class Number:
    @check
    def taken(self, value: int) -> None:
        self.value = value

    @property
    @check
    def double(self) -> int:
        return self.value * 2.0


@check
@dataclass
class Plain:
    name: str


@check
@dataclass
class Shaped:
    name: str
    a: Float[Tensor, "n n"]


def test_types_are_checked_where_there_is_no_shape():
    number = Number()
    number.taken(1)
    assert plain(1, "a", more=1.0) == "a" and Plain("a").name == "a"
    for wrong in (
        lambda: plain("1"), lambda: plain(1, 2), lambda: plain(1, more="a"), lambda: plain(0),
        lambda: number.taken("a"), lambda: number.double, lambda: Plain(1),
    ):  # fmt: skip
        with pytest.raises(Exception, match="violates type hint"):
            wrong()


@check
def same(a: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    return a.T


def test_sizes_are_compared_where_there_is_one():
    a = torch.ones(2, 3)
    assert same(a[:, :2]).shape == (2, 2)
    assert shaped(a, [torch.ones(3)]) == 2 and Shaped("a", torch.ones(2, 2)).name == "a"
    for wrong in (lambda: shaped(a, [torch.ones(2)]), lambda: shaped(a[0]), lambda: Shaped("a", a), lambda: same(a)):
        with pytest.raises(Exception, match="violates type hint"):
            wrong()


@check
def halves(a: Float[Tensor, "n m"]) -> Iterator[int]:
    yield len(a) // 2


@check
def read(a: Float[Tensor, "n m"]) -> int:
    return next(halves(a[:2]))


def test_a_generator_has_sizes_of_its_own():
    assert read(torch.ones(4, 3)) == 1
    with pytest.raises(Exception, match="Type-check error whilst checking the parameters"):
        halves(torch.ones(4))


def test_the_package_is_checked():
    with pytest.raises(Exception, match="violates type hint"):
        shape("a node")
    with pytest.raises(Exception, match="violates type hint"):
        rounded_rows(torch.ones(2), 4)
