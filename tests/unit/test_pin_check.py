"""The pin checker is right about histories whose truth is known."""

from __future__ import annotations

from dataclasses import replace

from tests.robustness.ledger import Attempt, Effect, Outcome, Touch
from tests.robustness.pin_check import Reign, check_pins

REIGNS = (
    Reign(1, 1, {"work": "w1", "effect": "e1"}, began=0.0, took_over=1.0),
    Reign(2, 2, {"work": "w2", "effect": "e1"}, began=5.0, took_over=6.0),
)
BY_1 = (Touch("work", 1, "w1"), Touch("effect", 1, "e1"))
BY_2 = (Touch("work", 2, "w2"), Touch("effect", 2, "e1"))
FIRST = Attempt("a", Outcome.OK, 200, version=1, deployment=1, touched=BY_1, sent_at=2.0, answered_at=2.1)
SECOND = Attempt("b", Outcome.OK, 200, version=2, deployment=2, touched=BY_2, sent_at=6.5, answered_at=6.6)


def test_what_went_as_pinned_is_ok() -> None:
    verdict = check_pins([FIRST, SECOND], [Effect("a", "e1", touched=BY_1), Effect("b", "e1", touched=BY_2)], REIGNS)
    assert verdict.ok, verdict.complaints()
    assert verdict.answered_by_deployment == {1: 1, 2: 1}
    # While the switch is on, either may answer; so may the old one what was sent before it ended.
    late = replace(FIRST, sent_at=5.9, answered_at=9.0)
    early = replace(SECOND, sent_at=5.1, answered_at=5.2)
    assert check_pins([late, early], [], REIGNS).ok


def test_code_that_was_not_pinned_is_seen() -> None:
    newer = (Touch("work", 1, "w2"), Touch("effect", 1, "e1"))
    assert len(check_pins([], [Effect("a", "e1", touched=newer)], REIGNS).unpinned) == 1
    assert len(check_pins([replace(FIRST, touched=newer)], [], REIGNS).unpinned) == 1
    assert check_pins([], [Effect("a", "e1")], REIGNS).unpinned
    assert check_pins([replace(FIRST, version=2)], [], REIGNS).unpinned
    assert check_pins([replace(FIRST, deployment=9, touched=())], [], REIGNS).unpinned


def test_an_execution_of_two_deployments_is_seen() -> None:
    assert len(check_pins([], [Effect("a", "e1", touched=(BY_1[0], BY_2[1]))], REIGNS).mixed) == 1
    both = [Effect("a", "e1", touched=BY_1), Effect("a", "e1", touched=BY_2)]
    assert len(check_pins([], both, REIGNS).mixed) == 1
    assert len(check_pins([FIRST], [Effect("a", "e1", touched=BY_2)], REIGNS).mixed) == 1


def test_a_deployment_out_of_its_time_is_seen() -> None:
    assert len(check_pins([replace(FIRST, sent_at=6.2, answered_at=6.3)], [], REIGNS).untimely) == 1
    assert len(check_pins([replace(SECOND, sent_at=4.0, answered_at=4.5)], [], REIGNS).untimely) == 1


def test_what_was_not_answered_says_nothing() -> None:
    unknown = Attempt("c", Outcome.UNKNOWN, 504)
    assert check_pins([unknown], [], REIGNS).ok
