"""Which ticks are due: multiples of the interval, each once, late ones made up for within limits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.orchestrator.domain.documents import FlowDocument, Rollout, Strategy
from services.orchestrator.domain.flow_states import FlowState
from services.orchestrator.domain.tick_plan import (
    CATCH_UP_NS,
    NANOS,
    TickCursor,
    TimerSpec,
    begun_to_tick,
    due_ticks,
    next_instant,
    settled_at_start,
    takes_ticks,
)

MS = 1_000_000
HOUR = 3600 * NANOS
NOW = 1_763_708_400 * NANOS + 123_456_789

intervals = st.sampled_from([10 * MS, 70 * MS, NANOS, 5 * NANOS, 7 * NANOS, 60 * NANOS, HOUR, 24 * HOUR])
lags = st.integers(0, 100 * HOUR) | st.integers(0, 2 * CATCH_UP_NS) | st.integers(0, NANOS)


@given(intervals, lags, st.integers(1, 200))
def test_every_instant_is_sent_or_counted_as_skipped_exactly_once(every: int, lag: int, limit: int) -> None:
    begin = settled = NOW - lag
    sent: list[int] = []
    skipped = 0
    for _ in range(20):
        due = due_ticks(settled, every, NOW, limit)
        skipped += due.skipped
        settled = due.instants[-1] if due.instants else due.skipped_to_ns
        sent += due.instants
        if due.next_ns > NOW:
            break
    owed = settled // every - begin // every
    assert len(sent) + skipped == owed
    assert sent == sorted(set(sent))
    assert all(instant % every == 0 and begin < instant <= NOW for instant in sent)
    assert all(instant >= NOW - CATCH_UP_NS for instant in sent[:-1])
    assert due.next_ns > settled


@given(intervals, lags)
def test_the_newest_missed_tick_is_always_sent(every: int, lag: int) -> None:
    newest = NOW // every * every
    due = due_ticks(NOW - lag, every, NOW, 1_000_000)
    assert (newest in due.instants) == (newest > NOW - lag)
    assert due.next_ns == newest + every


@given(intervals, lags, lags)
def test_whoever_comes_later_owes_no_other_instants(every: int, lag: int, later: int) -> None:
    """Instants follow from clock and interval alone: two schedulers can only differ in how late they are."""
    first = set(due_ticks(NOW - lag, every, NOW, 1_000_000).instants)
    second = set(due_ticks(NOW - lag - later, every, NOW, 1_000_000).instants)
    assert first <= second


def spec(running_since: int = NOW - HOUR, active_since: int = NOW - HOUR, every: int = NANOS) -> TimerSpec:
    return TimerSpec("ticker", "tick", "tick", every, running_since, active_since)


def test_a_new_timer_owes_nothing_from_before_it_was_active() -> None:
    assert settled_at_start(spec(active_since=NOW - 5), None, NOW) == NOW - 5


def test_a_cursor_of_this_run_goes_on() -> None:
    assert settled_at_start(spec(), TickCursor("tick", NOW - 10 * NANOS), NOW) == NOW - 10 * NANOS
    moved = spec(active_since=NOW - NANOS)
    assert settled_at_start(moved, TickCursor("tick", NOW - 10 * NANOS), NOW) == NOW - 10 * NANOS


def test_the_time_in_which_the_flow_stood_still_is_not_made_up_for() -> None:
    again = spec(running_since=NOW - NANOS)
    assert settled_at_start(again, TickCursor("tick", NOW - 10 * NANOS), NOW) == NOW - NANOS


def test_another_trigger_and_a_cursor_from_the_future_begin_anew() -> None:
    fresh = spec()
    assert settled_at_start(fresh, TickCursor("other", NOW - NANOS), NOW) == NOW - HOUR
    assert settled_at_start(fresh, TickCursor("tick", NOW + HOUR), NOW) == NOW
    assert settled_at_start(fresh, TickCursor("tick", NOW + NANOS), NOW) == NOW + NANOS


def test_the_next_instant_is_after_now_and_after_what_is_settled() -> None:
    assert next_instant(0, HOUR, NOW) == NOW // HOUR * HOUR + HOUR
    assert next_instant(NOW + 2 * HOUR, HOUR, NOW) > NOW + 2 * HOUR


def test_a_flow_that_begins_to_run_notes_when() -> None:
    before = FlowDocument("ticker", "realtime", 0.0, state=FlowState.STARTING)
    running = FlowDocument("ticker", "realtime", 0.0, state=FlowState.RUNNING)
    assert begun_to_tick(before, running, 7.0).running_since == 7.0
    restarting = FlowDocument(
        "ticker", "realtime", 0.0, state=FlowState.STARTING, rollout=Rollout(Strategy.RESTART), running_since=3.0
    )
    assert takes_ticks(restarting)
    assert begun_to_tick(restarting, running, 7.0).running_since == 0.0
    assert begun_to_tick(running, running, 7.0).running_since == 0.0
    assert begun_to_tick(running, before, 7.0).running_since == 0.0
