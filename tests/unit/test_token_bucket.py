"""A token bucket never lets more through than it says, and always lets something through in the end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.model.token_bucket import TokenBucket

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
    assert bucket.take(1.0, 100_000) <= min(before, after)


@pytest.mark.parametrize(("rate", "burst"), [(0.0, 1), (-1.0, 1), (1.0, 0.5), (float("nan"), 1)])
def test_nonsense_is_refused(rate: float, burst: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        TokenBucket(rate, burst, 0.0)
