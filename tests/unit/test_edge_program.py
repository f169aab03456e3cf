"""What expressions of an edge see and what becomes of their values."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.wire.edge_program import EdgeProgram

BODY = {"sku": "a1", "n": 3, "none": None, "empty": [], "zero": 0, "lines": [{"p": 1}, {"p": 2}]}
MESSAGE = {"id": "m1", "execution": "x1", "sender": "price"}


def route(condition: str = "", mapping: str = "", *, body: bytes = b"", kind: str = "application/json") -> Any:
    """What the one edge gets; an assertion error with the text if an expression failed."""
    passed = [("order", b'{"total": 5}', "application/json", {"from": "web"})]
    program = EdgeProgram([("check", condition, mapping)])
    error, bodies = program.route(body or json.dumps(BODY).encode(), kind, {"tenant": "t"}, MESSAGE, passed)
    assert not error, error
    assert bodies is not None
    return bodies[0]


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("body.n > 2", True),
        ("body.n > 3", False),
        ("body.nothing", False),
        ("body.none", False),
        ("body.zero", False),
        ("body.empty", False),
        ("''", False),
        ("'false'", True),
        ("body.lines", True),
        ("headers.tenant = 't' and steps.order.headers.from = 'web'", True),
        ("message.sender = 'price' and message.content_type = 'application/json'", True),
        ("function($x) { $x }", False),
    ],
)
def test_a_condition_holds_by_jsonatas_truth(condition: str, holds: bool) -> None:
    assert route(condition) is (True if holds else None)


@pytest.mark.parametrize(
    ("mapping", "value"),
    [
        ("body", BODY),
        ("null", None),
        ("body.none", None),
        ("{'n': body.n, 'gone': body.gone, 'none': body.none}", {"n": 3, "none": None}),
        ("body.lines.p", [1, 2]),
        ("body.lines[0].p", 1),
        ("steps.order.body.total + body.n", 8),
        ("steps.price.body.n", 3),
        ("$x := body.n", 3),
        ("'é\\n'", "é\n"),
    ],
)
def test_a_mapping_yields_the_body(mapping: str, value: Any) -> None:
    assert json.loads(route(mapping=mapping)) == value


@pytest.mark.parametrize(
    ("mapping", "told"),
    [
        ("body.gone", "the mapping of the edge to 'check' failed: `body.gone`: yields no value"),
        ("$x", "yields no value"),  # what another evaluation has bound is not seen
        ("{'f': function($x) { $x }}", "has no JSON"),
        ("body.sku + 1", "`body.sku + 1` (at character 10): The left side of the + operator must evaluate to a number"),
        ("{\n  'n': 1 + body.sku\n}", "(at line 2, character 10)"),
        ("1 / 0", "division by zero"),
        ("$nosuch(1)", "(at character 8): Attempted to invoke a non-function"),
        ("$error('out of stock')", "out of stock"),
        ("$pad('x', 600000)", "yields 600002 bytes, more than 524288"),
    ],
)
def test_a_mapping_that_fails_says_where_and_why(mapping: str, told: str) -> None:
    with pytest.raises(AssertionError) as refused:
        route(mapping=mapping)
    assert told in str(refused.value)


def test_a_body_that_is_no_json_is_text_or_nothing() -> None:
    assert route("body = 'plain'", body=b"plain", kind="text/plain") is True
    assert route("body = 'plain'", body=b"plain", kind="") is True
    assert route("body = '12'", body=b"12", kind="text/plain") is True
    assert route("body.n = 12", body=b'{"n": 12}', kind="application/x-www-form-urlencoded") is True  # what curl says
    assert route("$not($exists(body)) and headers.tenant = 't'", body=b"\xff", kind="image/png") is True
    with pytest.raises(AssertionError, match="the body is not JSON, as its content type 'application/json' says"):
        route("true", body=b"{nope")
