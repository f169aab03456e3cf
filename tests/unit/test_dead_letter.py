"""Making dead letters, and the ledger of what people do with them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.model.message_ids import dead_letter_id
from headrace.wire.dead_letter import LetterDesk, failed_attempt
from headrace.wire.envelope import Envelope, decode_dead_letter
from services.orchestrator.domain import letter_ledger as ledgers
from services.orchestrator.domain.dead_letters import LetterLimits, LettersView, letter_stream_config, pushed_out
from services.orchestrator.domain.letter_ledger import DISCARD, REPLAY, LetterLedger
from tests.support.plans import plan_of


def test_a_letter_keeps_the_original_its_attempts_and_what_its_deployment_ran() -> None:
    original = Envelope(id="i", execution_id="e", body=b"\x00poison")
    plan = plan_of("orders", "order", "price", deployment=2, version=7)
    attempts = [failed_attempt(1, "TIMEOUT", "after 30 s", 1)]
    sealed = LetterDesk.of_plan(plan).letter(original, "price", "TIMEOUT", attempts, 2, traceparent="00-a-b-01")
    letter = decode_dead_letter(sealed.payload)
    assert letter.original == original
    assert [attempt.code for attempt in letter.attempts] == ["TIMEOUT"]
    assert (letter.flow, letter.step, letter.deployment, letter.version) == ("orders", "price", 2, 7)
    assert (letter.reason, letter.traceparent, letter.attempt_count) == ("TIMEOUT", "00-a-b-01", 1)
    assert dict(letter.pins) == {step.name: step.pin.digest for step in plan.steps}
    assert letter.revision == letter.pins["price"]
    assert sealed.message_id == dead_letter_id("i", "price")
    assert sealed.subject == "hr.default._letters.orders.price"


def test_of_very_many_attempts_the_first_and_the_last_are_kept_and_long_texts_are_cut() -> None:
    attempts = [failed_attempt(number, "E", "x" * 5000, number) for number in range(1, 101)]
    desk = LetterDesk.without_plan("default", "orders", 3)
    body = b"b" * 512 * 1024
    sealed = desk.letter(Envelope(id="i", execution_id="e", body=body), "price", "E", attempts, 1)
    letter = decode_dead_letter(sealed.payload)
    assert [attempt.attempt for attempt in letter.attempts] == [1, 2, 3, 4, 5, *range(86, 101)]
    assert (letter.attempt_count, letter.deployment, letter.revision) == (100, 3, "")
    assert len(sealed.payload) < 1024 * 1024, "the broker would refuse it"


@given(st.lists(st.tuples(st.sampled_from([REPLAY, DISCARD]), st.integers(1, 5), st.integers(0, 5)), max_size=20))
def test_every_letter_that_is_gone_is_counted_once(works: list[tuple[str, int, int]]) -> None:
    """`done` of a batch of `size` get away; killed in between or not, the counts say so."""
    ledger, stored, kept = LetterLedger(), 200, 200
    for action, size, done in works:
        ledger = ledgers.begun(ledger, action, "somebody", "all", 1.0)
        batch = list(range(size))
        ledger = ledgers.claimed(ledger, batch, 7, 2.0)
        before = ledger.replayed + ledger.discarded
        ledger = ledgers.noted(ledger, batch[:done])
        gone = len(batch[:done])
        assert ledger.replayed + ledger.discarded == before + gone
        assert ledger.work is not None
        assert ledger.work.batch == tuple(batch[:done])
        kept -= gone
        ledger = ledgers.ended(ledger)
        assert pushed_out(LettersView({}, kept=kept, stored=stored), ledger) == 0
    assert pushed_out(LettersView({}, kept=kept - 3, stored=stored + 4), ledger) == 7


@pytest.mark.parametrize(
    ("action", "noted", "later_s", "doubtful"),
    [(REPLAY, False, 10.0, False), (REPLAY, False, 91.0, True), (REPLAY, False, -1.0, True),
     (REPLAY, True, 91.0, False), (DISCARD, False, 91.0, False)],
)  # fmt: skip
def test_a_claimed_replay_is_in_doubt_once_the_broker_may_have_forgotten_it(
    action: str, noted: bool, later_s: float, doubtful: bool
) -> None:
    ledger = ledgers.claimed(ledgers.begun(LetterLedger(), action, "somebody", "all", 1.0), [4, 5], 7, 100.0)
    if noted:
        ledger = ledgers.noted(ledger, [4, 5])
    assert ledger.work is not None
    assert ledgers.is_doubtful(ledger.work, 100.0 + later_s) is doubtful


def test_letters_in_doubt_stay_until_they_are_replayed_by_name() -> None:
    ledger = ledgers.claimed(ledgers.begun(LetterLedger(), REPLAY, "somebody", "all", 1.0), [4, 5], 7, 100.0)
    ledger = ledgers.ended(ledgers.doubted(ledger))
    assert (ledger.in_doubt, ledger.replayed) == ((4, 5), 0)
    ledger = ledgers.claimed(ledgers.begun(ledger, REPLAY, "somebody", "4", 200.0), [4], 8, 200.0)
    ledger = ledgers.noted(ledger, [4])
    assert (ledger.in_doubt, ledger.replayed) == ((5,), 1)


@given(st.floats(1, 30 * 24 * 3600.0))
def test_the_window_of_duplicates_is_never_longer_than_letters_are_kept(age_s: float) -> None:
    """A broker refuses such a stream, and the flow's letters would have none."""
    config = letter_stream_config("default", "orders", LetterLimits(age_s=age_s))
    assert 0 < int(str(config["duplicate_window"])) <= int(str(config["max_age"]))
