"""Properties of the log-linear histogram."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.model.histogram import BUCKETS, MAX_NS, Histogram, bucket_bounds, bucket_of

samples = st.lists(st.integers(min_value=-1_000_000, max_value=10**12), max_size=200)
durations = st.lists(st.integers(min_value=1, max_value=10**13), min_size=1, max_size=200)


def recorded(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@given(st.integers(min_value=0, max_value=MAX_NS))
def test_a_value_lies_in_its_bucket_whose_middle_is_close(value: int) -> None:
    low, high = bucket_bounds(bucket_of(value))
    assert low <= value <= high
    assert abs((low + high) / 2 - value) <= 0.05 * value


def test_buckets_join_without_gap_and_end_at_the_highest_value() -> None:
    expected = 0
    for index in range(BUCKETS):
        low, high = bucket_bounds(index)
        assert low == expected
        assert bucket_of(low) == bucket_of(high) == index
        expected = high + 1
    assert expected == MAX_NS + 1


@given(durations, st.floats(min_value=0.0, max_value=1.0))
def test_a_quantile_is_at_most_five_percent_off(values: list[int], fraction: float) -> None:
    exact = sorted(values)[max(1, math.ceil(fraction * len(values))) - 1]
    assert recorded(values).quantile(fraction) == pytest.approx(exact, rel=0.05)


@given(samples)
def test_count_sum_max_and_skew_are_exact(values: list[int]) -> None:
    histogram = recorded(values)
    assert histogram.count == len(values)
    assert histogram.sum_ns == sum(values)
    assert histogram.max_ns == max([0, *values])
    assert histogram.skewed == sum(value < 0 for value in values)


@given(samples, samples)
def test_merging_is_recording_both(first: list[int], second: list[int]) -> None:
    merged, both = recorded(first), recorded(first + second)
    merged.merge(recorded(second))
    assert merged.sparse() == both.sparse()
    assert (merged.sum_ns, merged.max_ns, merged.skewed) == (both.sum_ns, both.max_ns, both.skewed)


@given(samples)
def test_sparse_and_back_is_the_same(values: list[int]) -> None:
    histogram = recorded(values)
    again = Histogram.from_sparse(
        histogram.sparse(), sum_ns=histogram.sum_ns, max_ns=histogram.max_ns, skewed=histogram.skewed
    )
    assert again.sparse() == histogram.sparse()
    assert again.quantiles([0.5, 0.99]) == histogram.quantiles([0.5, 0.99])
    assert again.mean_ns == histogram.mean_ns


@given(durations)
def test_quantiles_rise_and_end_at_the_maximum(values: list[int]) -> None:
    histogram = recorded(values)
    found = histogram.quantiles([0.0, 0.5, 0.95, 0.99, 1.0])
    assert found == sorted(found)
    assert found[-1] <= histogram.max_ns


def test_what_is_empty_or_beyond_the_range() -> None:
    assert Histogram().quantiles([0.5, 0.99]) == [0.0, 0.0]
    assert Histogram().mean_ns == 0.0
    beyond = recorded([MAX_NS, 1 << 70])
    assert (beyond.count, beyond.max_ns, beyond.sum_ns) == (2, MAX_NS, 2 * MAX_NS)
    with pytest.raises(ValueError, match="not a bucket"):
        Histogram.from_sparse({BUCKETS: 1}, sum_ns=0, max_ns=0, skewed=0)


@given(st.lists(st.lists(st.integers(min_value=-1_000, max_value=1 << 66) | st.integers(0, 10**7), max_size=40)))
def test_many_at_once_are_as_each_by_itself(lots: list[list[int]]) -> None:
    many, each = Histogram(), recorded([value for lot in lots for value in lot])
    for lot in lots:
        many.record_all(lot)
    assert many.sparse() == each.sparse()
    assert (many.count, many.sum_ns, many.max_ns, many.skewed) == (
        each.count, each.sum_ns, each.max_ns, each.skewed
    )  # fmt: skip
