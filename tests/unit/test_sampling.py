"""Which traces are sampled, what is kept besides, and what a capture catches."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

from headrace.model.errors import InvalidInput
from headrace.model.hop_record import HopOutcome, HopRecord
from headrace.model.record_lot import RecordLot
from headrace.model.sampling import (
    MAX_CAPTURE,
    CaptureMatcher,
    Sampling,
    TailRules,
    bound_of,
    check_ratio,
    claimed,
    decode_sampling,
    encode_sampling,
    is_sampled,
    new_capture,
    with_capture,
    with_ratio,
    without_recorded,
)
from tests.support.records import START, execution, hop, root

ratios = st.floats(0, 1)
trace_ids = st.integers(1, 2**128 - 1).map(lambda number: f"{number:032x}")


@given(ratios, trace_ids)
def test_the_stock_sdk_says_the_same(ratio: float, trace_id: str) -> None:
    stock = TraceIdRatioBased(ratio).should_sample(None, int(trace_id, 16), "x").decision is Decision.RECORD_AND_SAMPLE
    assert is_sampled(trace_id, bound_of(ratio)) is stock


@given(trace_ids, ratios, ratios)
def test_what_is_sampled_at_a_ratio_is_at_every_higher_one(trace_id: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert is_sampled(trace_id, bound_of(low)) <= is_sampled(trace_id, bound_of(high))
    assert is_sampled(trace_id, bound_of(1.0))
    assert not is_sampled(trace_id, bound_of(0.0))


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.5, 0.9])
def test_the_ratio_of_many_executions_is_the_one_asked_for(ratio: float) -> None:
    sampled = sum(is_sampled(execution(number), bound_of(ratio)) for number in range(20_000))
    assert abs(sampled / 20_000 - ratio) < 4 * (ratio * (1 - ratio) / 20_000) ** 0.5


def test_what_is_no_id_is_not_sampled() -> None:
    assert not is_sampled("not hexadecimal", bound_of(1.0))


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_ratio_out_of_bounds_is_refused(ratio: float) -> None:
    with pytest.raises(InvalidInput, match="not between 0 and 1"):
        check_ratio(ratio)


def test_failures_retries_and_dead_letters_are_always_worth_keeping() -> None:
    rules = TailRules()
    rules.reason(hop(0, took_ns=10**12))  # nothing is slower
    reasons = {
        rules.reason(hop(1, outcome=HopOutcome.DEAD_LETTERED, code="NO_PRICE")): "error",
        rules.reason(hop(2, outcome=HopOutcome.RETRIED, code="NO_PRICE")): "retry",
        rules.reason(hop(3, attempt=2)): "retry",
        rules.reason(root(4, status=504, code="NO_REPLY", took_ns=0)): "error",
        rules.reason(hop(5)): "",
    }
    assert all(found == wanted for found, wanted in reasons.items())
    assert len(reasons) == 3


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 10**9)), min_size=1, max_size=200))
def test_the_slowest_of_each_minute_is_kept(steps: list[tuple[int, int]]) -> None:
    rules = TailRules()
    kept: list[HopRecord] = []
    slowest: dict[int, int] = {}
    minute = START // 60_000_000_000 + 1
    for number, (minutes, took_ns) in enumerate(steps):
        minute += minutes
        record = hop(number, at_ns=minute * 60_000_000_000, took_ns=took_ns)
        slowest[minute] = max(slowest.get(minute, 0), took_ns)
        if rules.reason(record) == "slowest":
            kept.append(record)
    found: dict[int, int] = {}
    for record in kept:
        found[record.stored_at_unix_ns // 60_000_000_000] = record.duration_ns
    assert found == slowest


def test_few_more_than_the_slowest_are_kept() -> None:
    rules, dice = TailRules(), random.Random(7)
    durations = [int(dice.lognormvariate(13, 0.5)) for _ in range(10_000)]
    kept = [took for took in durations if rules.reason(hop(0, took_ns=took))]
    assert kept[-1] == max(durations)
    assert len(kept) < 30


def test_a_capture_catches_what_fits_once_and_no_more_than_asked_for() -> None:
    now = START / 1e9
    sampling = Sampling(ratio=0.0, capture=new_capture(2, "step=price", now))
    assert sampling.capture is not None
    matcher = CaptureMatcher(sampling.capture)

    assert matcher.found([hop(1, at_ns=START - 10**9)]) == [], "it began before anybody asked"
    assert matcher.found([root(2), hop(3), hop(3), hop(4)]) == [execution(3), execution(4)]
    assert matcher.found([hop(3)]) == []

    after = claimed(sampling, [execution(3), execution(3), execution(4), execution(5)], now)
    assert after is not None
    assert after.capture is not None
    assert after.capture.caught == (execution(3), execution(4))
    assert after.capture.full
    assert claimed(after, [execution(6)], now) is None
    assert claimed(sampling, [execution(3)], now + 10_000) is None, "its time is over"
    assert decode_sampling(encode_sampling(after)) == after


@pytest.mark.parametrize(
    ("count", "where", "within"), [(0, "", 0), (MAX_CAPTURE + 1, "", 0), (1, "step", 0), (1, "", -1)]
)
def test_a_capture_out_of_bounds_is_refused(count: int, where: str, within: float) -> None:
    with pytest.raises(InvalidInput):
        new_capture(count, where, 0.0, within)


def test_changes_are_noted_for_the_history_until_it_has_them() -> None:
    first = with_ratio(Sampling(), 0.25, "ann", 100.0)
    assert first is not None
    assert with_ratio(first, 0.25, "bob", 101.0) is None
    capture = new_capture(3, "step=price", 100.0, 60.0)
    second = with_capture(first, capture, "bob", 100.0)
    again = with_capture(second, capture, "bob", 99.0)  # by a clock that is behind
    said = [(change.at_ms, change.who, change.what, change.detail) for change in again.unrecorded]
    words = "the next 3 where step=price, within 60 s"
    assert said == [
        (100_000, "ann", "sampling", "ratio 0.25 (was 1)"),
        (100_001, "bob", "capture", words),
        (100_002, "bob", "capture", f"{words}; in place of one with 0 of 3"),
    ]
    assert decode_sampling(encode_sampling(again)) == again

    left = without_recorded(second.unrecorded, again)
    assert left is not None
    assert (left.unrecorded, left.ratio, left.capture) == (again.unrecorded[2:], 0.25, capture)
    assert without_recorded(second.unrecorded, left) is None


@given(
    st.lists(
        st.lists(
            st.tuples(
                st.integers(0, 2), st.integers(1, 60), st.booleans(), st.sampled_from([1, 1, 1, 2]), st.booleans()
            ),
            max_size=12,
        ),
        max_size=6,
    )
)
def test_whoever_is_not_asked_would_have_had_no_reason(made: list[list[tuple[int, int, bool, int, bool]]]) -> None:
    whole, few = TailRules(), TailRules()
    minute = START // 60_000_000_000 + 1
    for number, lot in enumerate(made):
        records = []
        for place, (minutes, took_ms, fails, attempt, sampled) in enumerate(lot):
            minute += minutes // 2
            outcome, code = (HopOutcome.DEAD_LETTERED, "NO_PRICE") if fails else (HopOutcome.PROCESSED, "")
            at_ns = minute * 60_000_000_000 + place
            more = {"outcome": outcome, "code": code, "attempt": attempt, "sampled": sampled}
            records.append(hop(number, at_ns=at_ns, took_ns=took_ms * 10**6, **more))  # type: ignore[arg-type]
        all_reasons = [(record, reason) for record in records if (reason := whole.reason(record))]
        asked = few.to_be_asked(RecordLot(records))
        found = [(record, reason) for record in asked if (reason := few.reason(record))]
        assert found == all_reasons
