"""A token bucket never lets more through than it says, and always lets something through in the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.model.flow_rates import FlowRates
from headrace.model.token_bucket import TokenBucket
from services.sidecar.pace import BURST_S, Pace

rates = st.floats(1 / 3600, 100_000)
bursts = st.floats(1, 10_000)
steps = st.lists(st.tuples(st.floats(-1, 60), st.integers(1, 200)), max_size=60)


@given(rates, bursts, steps)
def test_in_any_time_no_more_than_burst_and_rate(rate: float, burst: float, moves: list[tuple[float, int]]) -> None:
    bucket = TokenBucket(rate, burst, 0.0)
    now, taken = 0.0, [(0.0, 0)]
    latest = 0.0
    for move, most in moves:
        now += move
        latest = max(latest, now)
        count = bucket.take(now, most)
        assert 0 <= count <= most
        taken.append((latest, count))
    for first in range(len(taken)):
        total = 0
        for at, count in taken[first:]:
            total += count
            assert total <= burst + rate * (at - taken[first][0]) + 1e-3


@given(rates, bursts, st.lists(st.integers(1, 50), max_size=30))
def test_what_is_waited_for_is_there(rate: float, burst: float, wanted: list[int]) -> None:
    bucket, now = TokenBucket(rate, burst, 0.0), 0.0
    for most in wanted:
        while bucket.take(now, most):
            pass
        wait_s = bucket.wait_s(now)
        assert 0 < wait_s <= 1 / rate * 1.001
        now += wait_s * (1 + 1e-9) + 1e-9
        assert bucket.take(now) == 1


@given(rates, bursts, st.integers(1, 500))
def test_reserved_tokens_come_one_after_the_other(rate: float, burst: float, count: int) -> None:
    bucket = TokenBucket(rate, burst, 0.0)
    waits = [bucket.reserve(0.0) for _ in range(count)]
    assert waits == sorted(waits)
    for number, wait_s in enumerate(waits, 1):
        assert wait_s == pytest.approx(max(0.0, (number - burst) / rate), rel=1e-6, abs=1e-6)


@given(rates, rates, bursts, bursts)
def test_a_new_rate_gives_no_more_than_the_new_burst(old: float, new: float, before: float, after: float) -> None:
    bucket = TokenBucket(old, before, 0.0)
    bucket.set_rate(new, after, 1.0)
    assert bucket.take(1.0, 100_000) <= min(before, after) + 1e-9


@pytest.mark.parametrize(("rate", "burst"), [(0.0, 1), (-1.0, 1), (1.0, 0.5), (float("nan"), 1)])
def test_nonsense_is_refused(rate: float, burst: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        TokenBucket(rate, burst, 0.0)


@given(st.floats(0.01, 1_000), st.lists(st.floats(0, 3), min_size=1, max_size=80))
def test_a_flow_takes_no_more_than_its_rate_and_says_when_to_come_again(rate: float, pauses: list[float]) -> None:
    rates, now, taken = FlowRates(), 0.0, 0
    for pause in pauses:
        now += pause
        wait_s = rates.enter("orders", rate, now)
        if wait_s:
            assert rates.enter("others", 0.0, now) == 0  # others are not held back
            now += wait_s * (1 + 1e-9) + 1e-9
            assert rates.enter("orders", rate, now) == 0
        taken += 1
    assert taken <= max(1, rate) + rate * now + 1e-3
    assert rates.enter("orders", 0.0, now) == 0


class _Clock:
    """Time that jumps to the next timer."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def later(self, delay_s: float, callback: Callable[[], None]) -> None:
        self.timers.append((self.now + delay_s, callback))

    def run(self, until: float) -> None:
        while self.timers and min(at for at, _ in self.timers) <= until:
            at, callback = min(self.timers, key=lambda timer: timer[0])
            self.timers.remove((at, callback))
            self.now = max(self.now, at)
            callback()
        self.now = until


@given(st.floats(0.5, 2_000), st.integers(1, 8), st.floats(1, 20))
def test_a_step_begins_its_share_per_second_and_is_woken_for_the_rest(
    rate: float, replicas: int, seconds: float
) -> None:
    clock, begun = _Clock(), [0]
    pace = Pace(rate, lambda: replicas, clock.later, lambda: clock.now)

    def begin() -> None:
        begun[0] += pace.take(1_000_000, begin)

    begin()
    clock.run(seconds)
    share = rate / replicas
    assert begun[0] <= max(1.0, share * BURST_S) + share * seconds + 1e-3
    assert begun[0] >= share * (seconds - 0.01) - 1
    assert len(clock.timers) == 1


def test_a_share_follows_the_number_of_replicas() -> None:
    clock, replicas = _Clock(), [1]
    pace = Pace(100.0, lambda: replicas[0], clock.later, lambda: clock.now)
    assert pace.take(1_000, lambda: None) == 10
    replicas[0] = 4
    clock.now = 1.0
    assert pace.take(1_000, lambda: None) <= 10
    clock.now = 2.0
    assert pace.take(1_000, lambda: None) == 2  # a tenth of a second's share
    pace.give_back(1)
    assert pace.take(1_000, lambda: None) == 1
