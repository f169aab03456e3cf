"""The ledger checker is right about histories whose truth is known."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.robustness.ledger import Attempt, Effect, Outcome, check, read_effects
from tests.robustness.traffic import judge
from tests.support.http_connection import HttpAnswer

History = tuple[list[Attempt], list[Effect], dict[str, set[str]]]


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Attempts and effects in any order, with the faults that were put in, by name."""
    truth: dict[str, set[str]] = {"lost": set(), "duplicated": set(), "unexpected": set(), "refused": set()}
    attempts: list[Attempt] = []
    effects: list[Effect] = []
    for number in range(draw(st.integers(0, 30))):
        id = f"i{number}"
        outcome = draw(st.sampled_from(Outcome))
        times = draw(st.integers(0, 3))
        attempts.append(Attempt(id, outcome))
        effects += [Effect(id, draw(st.sampled_from(["r1", "r2"]))) for _ in range(times)]
        if times == 0 and outcome is Outcome.OK:
            truth["lost"].add(id)
        if times > 1:
            truth["duplicated"].add(id)
        if times and outcome is Outcome.FAILED:
            truth["refused"].add(id)
    for number in range(draw(st.integers(0, 3))):
        effects.append(Effect(f"stranger{number}", "r1"))
        truth["unexpected"].add(f"stranger{number}")
    return draw(st.permutations(attempts)), draw(st.permutations(effects)), truth


@given(histories())
def test_every_fault_is_found_and_nothing_else(
    history: tuple[list[Attempt], list[Effect], dict[str, set[str]]],
) -> None:
    attempts, effects, truth = history
    verdict = check(attempts, effects)
    assert verdict.lost == truth["lost"]
    assert verdict.duplicated == truth["duplicated"]
    assert verdict.unexpected == truth["unexpected"]
    assert verdict.refused == truth["refused"]
    assert verdict.ok == (not any(truth.values()))
    assert verdict.attempted == len(attempts) == verdict.acknowledged + verdict.failed + verdict.unknown
    assert sum(verdict.by_revision.values()) == len(effects)
    assert "\n" not in verdict.line()
    assert ("ledger ok" in verdict.line()) == verdict.ok


@given(st.lists(st.sampled_from(Outcome), min_size=1, max_size=30))
def test_unknown_may_be_either(outcomes: list[Outcome]) -> None:
    attempts = [Attempt(str(number), outcome) for number, outcome in enumerate(outcomes)]
    certain = [Effect(attempt.id) for attempt in attempts if attempt.outcome is Outcome.OK]
    possible = [Effect(attempt.id) for attempt in attempts if attempt.outcome is not Outcome.FAILED]
    assert check(attempts, certain).ok
    assert check(attempts, possible).ok


def test_a_wrong_answer_breaks_it() -> None:
    verdict = check([Attempt("a", Outcome.OK, 200, wrong="answered for 'b'")], [Effect("a")])
    assert not verdict.ok
    assert "wrong answers 1" in verdict.line()


def test_an_id_attempted_twice_is_the_traffics_fault() -> None:
    with pytest.raises(ValueError, match="twice"):
        check([Attempt("a", Outcome.OK), Attempt("a", Outcome.FAILED)], [])


@pytest.mark.parametrize(
    ("status", "body", "outcome", "wrong"),
    [
        (200, b'{"id": "a"}', Outcome.OK, False),
        (200, b'{"id": "b"}', Outcome.OK, True),
        (200, b"rubbish", Outcome.OK, True),
        (200, b'["a"]', Outcome.OK, True),
        (202, b'{"execution": "e"}', Outcome.OK, False),
        (429, b"{}", Outcome.FAILED, False),
        (503, b"{}", Outcome.UNKNOWN, False),
        (504, b"{}", Outcome.UNKNOWN, False),
        (500, b"{}", Outcome.FAILED, False),
    ],
)
def test_what_an_answer_tells(status: int, body: bytes, outcome: Outcome, wrong: bool) -> None:
    attempt = judge("a", HttpAnswer(status, {"headrace-execution": "e"}, body))
    assert (attempt.outcome, bool(attempt.wrong)) == (outcome, wrong)


def test_effects_are_read_and_bad_lines_named(tmp_path: Path) -> None:
    file = tmp_path / "effects.jsonl"
    assert read_effects(file) == []
    file.write_text('{"id": "a", "revision": "r1", "message_id": "m", "attempt": 2}\n{"id": "b", "revision": "r2"}\n')
    assert read_effects(file) == [Effect("a", "r1", "m", 2), Effect("b", "r2")]
    with file.open("a") as opened:
        opened.write('{"id": "c"')
    with pytest.raises(ValueError, match="line 3"):
        read_effects(file)
