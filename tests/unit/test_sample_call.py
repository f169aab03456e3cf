"""The body that `headrace dev` proposes fits the type that the function has."""

from __future__ import annotations

from typing import Literal

import jsonschema
import msgspec
import pytest

from headrace.cli.sample_call import sample_of


class Line(msgspec.Struct):
    sku: str
    quantity: int


class Order(msgspec.Struct):
    order_id: str
    currency: Literal["EUR", "USD"]
    lines: list[Line]
    first: Line
    coupon: str = ""


@pytest.mark.parametrize("kind", [Order, Line, str, int, bool, list[int], dict[str, int], Order | None])
def test_a_sample_is_valid(kind: object) -> None:
    schema = msgspec.json.schema(kind)
    jsonschema.validate(sample_of(schema), schema)


def test_only_what_is_required_is_in_it() -> None:
    sample = sample_of(msgspec.json.schema(Order))
    assert sample == {"order_id": "...", "currency": "EUR", "lines": [], "first": {"sku": "...", "quantity": 1}}


def test_a_schema_that_refers_to_itself_ends() -> None:
    schema = {"$ref": "#/$defs/Node", "$defs": {"Node": {"required": ["next"], "properties": {"next": {"$ref": "#"}}}}}
    assert isinstance(sample_of(schema), dict)
