"""A value without JSON is refused with the path to what has none, and why."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.sdk.body import UnencodableOutput, encode_body
from headrace.sdk.unencodable import unencodable_part


class _Line(msgspec.Struct):
    sku: str
    extra: Any = None


@dataclasses.dataclass
class _Order:
    lines: list[_Line]


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def _circle() -> Any:
    value: dict[str, Any] = {"a": 1}
    value["self"] = [value]
    return value


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (object(), ["object cannot be encoded", "the value:", "object"]),
        ({"orders": [{"id": 1}, {"id": 2, "when": object()}]}, ["['orders'][1]['when']:", "object"]),
        (_Order([_Line("a"), _Line("b", {"f": print})]), [".lines[1].extra['f']:", "builtin_function"]),
        ({"a": {(1, 2): "x"}}, ["['a']: key '(1, 2)'"]),
        ({"text": "\ud800"}, ["['text']:", "surrogate"]),
        (_circle(), ["['self'][0]: contains itself"]),
        (_deep(100_000), ["nested deeper than 200 levels"]),
        ([1, 2**70, complex(1)], ["[2]:", "complex"]),
    ],
)
def test_the_refusal_names_what_and_why(value: Any, said: list[str]) -> None:
    with pytest.raises(UnencodableOutput) as refused:
        encode_body(value)
    for part in said:
        assert part in str(refused.value)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
)


@given(plain)
def test_nothing_is_found_where_all_is_well(value: Any) -> None:
    assert unencodable_part(value) == ""


@given(plain, st.lists(st.integers(0, 3), max_size=5))
def test_a_bad_part_is_found_wherever_it_hides(value: Any, way: list[int]) -> None:
    bad: Any = object()
    for turn in way:
        bad = [[value] * turn + [bad], {"k": bad, "x": value}][turn % 2]
    found = unencodable_part(bad)
    assert "object" in found
    assert found.count("[") >= len(way)
