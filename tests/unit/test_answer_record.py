"""The record behind an Idempotency-Key: what a repeat may do in each of its states."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.model import answer as answers
from headrace.model.answer import Answer, AnswerState, Verdict, judge

NOW = 1_800_000_000.0
DUPLICATE_WINDOW_S = 120.0


def record(state: AnswerState, *, reserved_ago_s: float = 0.0, held_for_s: float = 0.0, reply: bytes = b"") -> Answer:
    return Answer("digest", "execution", state, "holder", NOW - reserved_ago_s, NOW - held_for_s, reply)


@pytest.mark.parametrize("state", AnswerState)
def test_another_body_never_gets_an_answer(state: AnswerState) -> None:
    found = record(state, reserved_ago_s=10, held_for_s=10)
    assert judge(found, body_digest="other", now_unix_s=NOW).verdict is Verdict.MISMATCH


def test_what_a_repeat_does() -> None:
    def verdict(found: Answer) -> Verdict:
        return judge(found, body_digest="digest", now_unix_s=NOW).verdict

    assert verdict(record(AnswerState.FINISHED, reserved_ago_s=80_000)) is Verdict.REPLAY
    assert verdict(record(AnswerState.ACCEPTED, reserved_ago_s=80_000)) is Verdict.BUSY
    assert verdict(record(AnswerState.RESERVED, held_for_s=1, reserved_ago_s=1)) is Verdict.BUSY
    assert verdict(record(AnswerState.RESERVED, held_for_s=6, reserved_ago_s=6)) is Verdict.TAKE_OVER
    assert verdict(record(AnswerState.RESERVED, held_for_s=6, reserved_ago_s=91)) is Verdict.IN_DOUBT


@given(st.lists(st.floats(answers.HOLD_S, 40.0), min_size=1, max_size=12))
def test_take_overs_publish_within_the_brokers_window_only(waits: list[float]) -> None:
    """However often a reservation changes hands, nobody publishes later than the window after the first."""
    now = NOW
    held = answers.reserved(body_digest="digest", execution="execution", holder="h0", now_unix_s=now)
    for number, wait in enumerate(waits):
        now += wait
        judgement = judge(held, body_digest="digest", now_unix_s=now)
        if judgement.verdict is not Verdict.TAKE_OVER:
            assert judgement.verdict is Verdict.IN_DOUBT
            assert now - NOW > answers.REPUBLISH_WINDOW_S
            return
        assert now - NOW < DUPLICATE_WINDOW_S
        held = answers.taken_over(held, holder=f"h{number}", now_unix_s=now)
        assert judge(held, body_digest="digest", now_unix_s=now).verdict is Verdict.BUSY


@given(st.floats(0, answers.HOLD_S - 0.001))
def test_a_busy_key_says_when_to_come_back(held_for_s: float) -> None:
    judgement = judge(record(AnswerState.RESERVED, held_for_s=held_for_s), body_digest="digest", now_unix_s=NOW)
    assert judgement.verdict is Verdict.BUSY
    assert 1 <= judgement.retry_after_s <= answers.HOLD_S
    assert held_for_s + judgement.retry_after_s >= answers.HOLD_S - 1e-6 or judgement.retry_after_s == answers.HOLD_S


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_the_first_answer_stays(first: bytes, second: bytes) -> None:
    stored = answers.encode_answer(answers.accepted(record(AnswerState.RESERVED), replies=True))
    finished = answers.finished(stored, execution="execution", reply=first)
    assert finished is not None
    assert answers.decode_answer(finished).reply == first
    assert answers.decode_answer(finished).state is AnswerState.FINISHED
    assert answers.finished(finished, execution="execution", reply=second) is None
    assert answers.finished(stored, execution="another", reply=second) is None
    assert answers.finished(None, execution="execution", reply=second) is None


def test_an_acceptance_is_the_answer_of_a_flow_that_does_not_reply() -> None:
    assert answers.accepted(record(AnswerState.RESERVED), replies=False).state is AnswerState.FINISHED
    assert answers.accepted(record(AnswerState.RESERVED), replies=True).state is AnswerState.ACCEPTED
