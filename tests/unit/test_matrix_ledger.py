"""The fault matrix's ledger finds what it is there to find."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.robustness.ledger import Outcome
from tests.robustness.matrix_flow import KEPT, LEAVES, Ledger, Request, check_matrix


def request(id: str, do: str = "ok", outcome: Outcome = Outcome.OK) -> Request:
    return Request(id, do, sent_at=0.0, outcome=outcome)


def effect(id: str, leaf: str, message: str = "", **more: Any) -> dict[str, Any]:
    key, number = id.rsplit("-", 1)
    return {"id": id, "leaf": leaf, "message_id": message or f"{id}.{leaf}", "key": key, "n": int(number)} | {
        "part": int(leaf[-1]),
        **more,
    }


def all_of(id: str) -> list[dict[str, Any]]:
    return [effect(id, leaf) for leaf in sorted(LEAVES)]


def check(
    requests: list[Request],
    lines: list[dict[str, Any]],
    dead: dict[str, int] | None = None,
    cut_off: str = "",
    *,
    keyed: bool = True,
) -> Ledger:
    return check_matrix(requests, lines, Counter(dead or {}), cut_off=frozenset({cut_off}), keyed=keyed)


def test_all_done_once_is_right() -> None:
    failed = [effect("a-1", leaf) for leaf in sorted(KEPT)]
    ledger = check([request("a-0"), request("a-1", "fail")], all_of("a-0") + failed, {"a-1": 1})
    assert ledger.ok, ledger.line()
    assert (ledger.attempted, ledger.acknowledged, ledger.effects, ledger.dead_letters) == (2, 2, 10, 1)


def test_what_nobody_answered_is_done_wholly_or_not_at_all() -> None:
    unknown = request("a-0", outcome=Outcome.UNKNOWN)
    assert check([unknown], []).ok
    assert check([unknown], all_of("a-0")).ok
    assert list(check([unknown], all_of("a-0")[:3]).lost) == ["a-0"]


def test_answered_and_not_done_is_lost_and_refused_and_done_is_wrong() -> None:
    assert list(check([request("a-0")], []).lost) == ["a-0"]
    refused = request("a-0", outcome=Outcome.FAILED)
    assert check([refused], []).ok
    assert list(check([refused], all_of("a-0")).wrong) == ["a-0"]


def test_a_second_message_is_a_duplicate_and_a_second_run_is_one_unless_its_step_was_cut_off() -> None:
    asked = [request("a-0")]
    assert not check(asked, [*all_of("a-0"), effect("a-0", "left0", "another")], cut_off="join").ok
    assert not check(asked, [*all_of("a-0"), effect("a-0", "left0")], cut_off="sink").ok
    again = check(asked, [*all_of("a-0"), effect("a-0", "left0")], cut_off="join")
    assert (again.ok, again.repeated) == (True, 1)


def test_dead_letters_are_counted_each() -> None:
    kept = [effect("a-0", leaf) for leaf in sorted(KEPT)]
    asked = [request("a-0", "fail")]
    assert list(check(asked, kept, {"a-0": 2}).duplicated) == ["a-0"]
    assert list(check(asked, kept).lost) == ["a-0"]
    assert list(check([request("a-1")], all_of("a-1"), {"a-1": 1}).duplicated) == ["a-1"]
    assert list(check([], [], {"b-0": 1}).wrong) == ["b-0"]


def test_order_counts_where_steps_are_keyed() -> None:
    lines = all_of("a-0") + all_of("a-1")
    swapped = all_of("a-1") + all_of("a-0")
    asked = [request("a-0"), request("a-1")]
    assert check(asked, swapped, keyed=False).ok
    assert check(asked, lines).ok
    assert list(check(asked, swapped).disordered) == ["a-0"]
