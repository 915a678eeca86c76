"""Strict records."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import AfterValidator

from benchmark.specs.schema import Strict, checked
from methods.errors import InputError


def even(number: int) -> int:
    if number % 2:
        raise ValueError("It should be even")
    return number


class Inner(Strict):
    share: float = 0.5


class Outer(Strict):
    name: str
    count: int = 1
    inner: Inner = Inner()
    pairs: Annotated[int, AfterValidator(even)] = 2


def test_good_data_become_a_record() -> None:
    record = checked(Outer, {"name": "a", "inner": {"share": 1}}, "It")
    assert record == Outer(name="a", inner=Inner(share=1.0))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"name": "a", "cuont": 2}, 'It: unknown key "cuont". Did you mean "count"?'),
        ({"name": "a", "inner": {"sahre": 2}}, 'It: unknown key "inner.sahre".'),
        ({}, 'It: the key "name" is missing.'),
        ({"name": "a", "count": "2"}, "It: \"count\" is '2', but input should be a valid integer."),
        ({"name": "a", "count": 2.5}, 'It: "count" is 2.5, but'),
        ({"name": "a", "inner": {"share": float("nan")}}, 'It: "inner.share" is nan, but'),
        ({"name": "a", "pairs": 3}, 'It: "pairs" is 3, but it should be even.'),
        ({"name": {1, 2}}, "It holds a value that is not plain"),
        (["name"], "It must be a mapping of settings"),
        (None, "It must be a mapping of settings"),
    ],
)
def test_wrong_data_are_told_in_one_sentence(data: Any, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        checked(Outer, data, "It")
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)
