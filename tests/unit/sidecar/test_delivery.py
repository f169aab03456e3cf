"""What happens to an input after its call: decided in one place."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from headrace.model.flow_spec import RetryPolicy
from headrace.model.limits import MAX_BODY_BYTES, MAX_OUTPUTS
from services.sidecar.domain.delivery import (
    DONE,
    LAST_CRASH,
    Decision,
    Ending,
    Outcome,
    Problem,
    Trail,
    check_output,
    check_reply,
    decide,
    error_status,
)
from services.sidecar.domain.retry_delay import REBOUND_LIMIT, REBOUND_MAX_S, retry_delay_s

policies = st.builds(
    RetryPolicy,
    attempts=st.integers(1, 10),
    backoff_s=st.floats(0.01, 10),
    max_delay_s=st.floats(0.01, 60),
    jitter=st.floats(0, 1),
)
problems = st.builds(Problem, code=st.just("X"), message=st.just("x"), status=st.integers(400, 599))
outcomes = st.builds(
    Outcome,
    ending=st.sampled_from(Ending),
    problem=st.none() | problems,
    retryable=st.booleans(),
    asked_delay_ms=st.integers(0, 10**7),
    alone=st.booleans(),
)
trails = st.builds(
    Trail,
    failures=st.integers(0, 20),
    rebounds=st.integers(0, 20),
    crashes=st.integers(0, 20),
    caller_waits=st.booleans(),
)


@given(outcomes, trails, policies)
def test_every_end_leads_to_exactly_one_thing(outcome: Outcome, trail: Trail, policy: RetryPolicy) -> None:
    decision = decide(outcome, trail, policy)
    assert [decision.deliver, decision.retry_after_s is not None, decision.error is not None].count(True) == 1
    # What is given up is either dead-lettered or was answered as a rejection: counted in exactly one place.
    if decision.error is not None:
        assert decision.dead_letter != decision.rejected
    else:
        assert not decision.dead_letter
        assert not decision.rejected
    if decision.retry_after_s is not None:
        assert 0 <= decision.retry_after_s <= max(policy.max_delay_s, REBOUND_MAX_S)
    assert decision.deliver == (outcome.ending is Ending.DONE)


def _follow(outcome: Outcome, policy: RetryPolicy, *, caller_waits: bool = False) -> tuple[int, Decision]:
    """Repeats one outcome until it is decided for good; answers the number of attempts and the decision."""
    failures = rebounds = crashes = 0
    for attempt in range(1, 100):
        decision = decide(outcome, Trail(failures, rebounds, crashes, caller_waits), policy)
        if decision.retry_after_s is None:
            return attempt, decision
        failures += decision.counts_as_failure
        rebounds += decision.counts_as_rebound
        crashes += decision.counts_as_crash
    raise AssertionError("never decided")


@given(policies, st.sampled_from([Ending.FAILED, Ending.TIMED_OUT]))
def test_retryable_failures_get_as_many_attempts_as_the_policy_says(policy: RetryPolicy, ending: Ending) -> None:
    attempts, decision = _follow(Outcome(ending, Problem("X", "x"), retryable=True), policy)
    assert attempts == policy.attempts
    assert decision.dead_letter


@given(policies)
def test_failures_that_cannot_help_are_tried_once(policy: RetryPolicy) -> None:
    assert _follow(Outcome(Ending.FAILED, Problem("X", "x")), policy)[0] == 1
    assert _follow(Outcome(Ending.OUTPUT_REFUSED, Problem("X", "x")), policy)[0] == 1


@given(policies, st.booleans(), st.sampled_from([Ending.FAILED, Ending.TIMED_OUT]))
def test_a_list_of_codes_decides_what_is_retried_whatever_the_component_says(
    policy: RetryPolicy, retryable: bool, ending: Ending
) -> None:
    policy = msgspec.structs.replace(policy, on=("BUSY", "TIMEOUT"))
    listed = _follow(Outcome(ending, Problem("BUSY", "x"), retryable=retryable), policy)[0]
    other = _follow(Outcome(ending, Problem("OTHER", "x"), retryable=retryable), policy)[0]
    assert (listed, other) == (policy.attempts, 1)


@given(policies, st.integers(1, 20), st.floats(0, 1))
def test_jitter_only_shortens_a_delay_and_never_by_more_than_it_says(
    policy: RetryPolicy, failures: int, chance: float
) -> None:
    whole = retry_delay_s(policy, failures)
    assert whole * (1 - policy.jitter) * 0.999 <= retry_delay_s(policy, failures, chance) <= whole


def test_a_rejection_is_an_answer_only_where_somebody_waits() -> None:
    outcome = Outcome(Ending.FAILED, Problem("UNKNOWN_SKU", "x", 422))
    assert _follow(outcome, RetryPolicy(), caller_waits=True)[1].rejected
    assert _follow(outcome, RetryPolicy(), caller_waits=False)[1].dead_letter
    server_side = Outcome(Ending.FAILED, Problem("X", "x", 503))
    assert _follow(server_side, RetryPolicy(), caller_waits=True)[1].dead_letter


@given(policies)
def test_only_who_was_alone_is_blamed_for_a_crash(policy: RetryPolicy) -> None:
    crowd = decide(Outcome(Ending.COMPONENT_DIED), Trail(crashes=50), policy)
    assert crowd.retry_after_s == 0
    attempts, decision = _follow(Outcome(Ending.COMPONENT_DIED, alone=True), policy)
    assert attempts == LAST_CRASH
    assert decision.error is not None
    assert decision.error.status == 502


def test_rebounds_are_bounded() -> None:
    attempts, decision = _follow(Outcome(Ending.REBOUND), RetryPolicy())
    assert attempts == REBOUND_LIMIT + 1
    assert decision.error is not None
    assert decision.error.code == "REBOUND_LIMIT"


@given(policies, st.integers(1, 10_000))
def test_delays_grow_to_their_cap_and_never_overflow(policy: RetryPolicy, failures: int) -> None:
    delay = retry_delay_s(policy, failures)
    assert 0 < delay <= policy.max_delay_s
    assert retry_delay_s(policy, failures + 1) >= delay


def test_bounds_of_outputs_and_replies() -> None:
    assert check_output(MAX_OUTPUTS - 1, MAX_BODY_BYTES) is None
    assert check_output(MAX_OUTPUTS, 1) is not None
    assert check_output(0, MAX_BODY_BYTES + 1) is not None
    assert check_reply(MAX_BODY_BYTES, 0) is None
    assert check_reply(MAX_BODY_BYTES + 1, 200) is not None
    assert check_reply(1, 99) is not None
    assert error_status(0) == 500
    assert error_status(404) == 404
    assert error_status(200) == 500


@given(trails, policies, st.floats(0, 1))
def test_a_call_that_ended_well_is_delivered_whatever_went_before(
    trail: Trail, policy: RetryPolicy, chance: float
) -> None:
    # The delivery loop does not ask about it.
    assert decide(DONE, trail, policy, chance) == Decision(deliver=True)
