"""The comparison of answers and effects with what is expected: it must find what differs, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from headrace.cli.demo_example import default_folder, load_example
from headrace.cli.order_check import Expected, check_orders


@dataclass(frozen=True)
class Answered:
    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=lambda: {"headrace-execution": "e1"})
    problem: str = ""


def effect(order: str, total: int, execution: str = "e1") -> dict[str, Any]:
    return {"order_id": order, "total_cents": total, "execution_id": execution, "message_id": "m", "attempt": 1}


ORDER = Expected("o1", 200, {"total_cents": 100}, ({"order_id": "o1", "total_cents": 100},))
GOOD = Answered(body=b'{"total_cents": 100}')


def found(expected: list[Expected], answers: list[Answered], effects: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(item.order, item.what) for item in check_orders(expected, answers, effects)]


def test_as_expected() -> None:
    assert found([ORDER], [GOOD], [effect("o1", 100)]) == []


def test_one_cent_in_an_answer() -> None:
    (difference,) = check_orders([ORDER], [Answered(body=b'{"total_cents": 101}')], [effect("o1", 100)])
    assert (difference.what, difference.expected, difference.got) == ("total_cents", "100", "101")


def test_one_cent_in_an_effect() -> None:
    assert found([ORDER], [GOOD], [effect("o1", 101)]) == [("o1", "effect missing"), ("o1", "effect nobody expected")]


def test_effects_missing_doubled_and_of_nobody() -> None:
    assert found([ORDER], [GOOD], []) == [("o1", "effect missing")]
    assert found([ORDER], [GOOD], [effect("o1", 100), effect("o1", 100)]) == [("o1", "effect too often")]
    stray = {"unreadable": "half a li"}
    assert found([ORDER], [GOOD], [effect("o1", 100), stray]) == [("", "effect nobody expected")]
    other = effect("o1", 100, execution="e2")
    assert found([ORDER], [GOOD], [other]) == [("o1", "execution of the effect")]


def test_answers_that_are_wrong_in_other_ways() -> None:
    done = [effect("o1", 100)]
    assert found([ORDER], [Answered(0, problem="refused")], [effect("o1", 100, "")])[0] == ("o1", "no answer")
    assert found([ORDER], [Answered(502)], done) == [("o1", "status")]
    assert found([ORDER], [Answered(body=b"<html>")], done) == [("o1", "answer is not JSON")]
    assert found([ORDER], [Answered(body=b'{"total_cents": 100, "more": 1}')], done) == [("o1", "more")]
    assert found([ORDER], [Answered(body=b'{"total_cents": true}')], done) == [("o1", "total_cents")]
    nameless = Answered(body=b'{"total_cents": 100}', headers={})
    assert ("o1", "header Headrace-Execution") in found([ORDER], [nameless], [effect("o1", 100, "")])


def test_an_error_answer_is_compared_by_what_is_expected_of_it() -> None:
    refused = Expected("o1", 422, {"error": {"code": "BAD"}})
    good = Answered(422, b'{"error": {"code": "BAD", "message": "m", "execution": "e1"}}')
    assert found([refused], [good], []) == []
    assert found([refused], [Answered(422, b'{"error": {"code": "WORSE"}}')], []) == [("o1", "error.code")]


def test_a_repeat_gets_the_first_execution_again() -> None:
    repeat = Expected("o2", 200, {"total_cents": 100}, (), repeats="o1")
    assert found([ORDER, repeat], [GOOD, GOOD], [effect("o1", 100)]) == []
    own = Answered(body=GOOD.body, headers={"headrace-execution": "e2"})
    assert found([ORDER, repeat], [GOOD, own], [effect("o1", 100)]) == [("o2", "execution of o1")]


totals = st.integers(0, 10**6)


@given(
    st.dictionaries(st.from_regex(r"o[0-9]{1,4}", fullmatch=True), st.tuples(totals, totals), min_size=1, max_size=8)
)
def test_exactly_the_orders_that_differ_are_found(orders: dict[str, tuple[int, int]]) -> None:
    expected = [
        Expected(name, 200, {"total_cents": wanted}, ({"order_id": name, "total_cents": wanted},))
        for name, (wanted, _) in orders.items()
    ]
    answers = [Answered(body=json.dumps({"total_cents": got}).encode()) for _, got in orders.values()]
    effects = [effect(name, got) for name, (_, got) in orders.items()]
    differing = {name for name, (wanted, got) in orders.items() if wanted != got}
    assert {order for order, _ in found(expected, answers, effects)} == differing


def test_the_example_brings_what_real_orders_bring(tmp_path: Path) -> None:
    example = load_example(None, effects=tmp_path / "effects.jsonl")
    assert len(example.requests) == len(example.expected) >= 200
    assert {200, 400, 422} <= {item.status for item in example.expected}
    assert max(len(request.body) for request in example.requests) > 250_000
    assert any(item.repeats for item in example.expected)
    assert any(ord(sign) > 0x3000 for request in example.requests for sign in request.body.decode())
    (notify,) = [step for step in example.flow_file.spec.steps if step.name == "notify"]
    assert notify.config["path"] == str(tmp_path / "effects.jsonl")
    assert json.loads(example.sample)["lines"]
    assert example.read_effects() == []
    assert default_folder().name == "orders"


def test_repeats_share_the_connection_of_the_first(tmp_path: Path) -> None:
    example = load_example(None, effects=tmp_path / "effects.jsonl")
    group_of = {item.order: request.group for item, request in zip(example.expected, example.requests, strict=True)}
    repeats = [item for item in example.expected if item.repeats]
    assert repeats
    for item in repeats:
        assert group_of[item.order] == group_of[item.repeats] != ""
