"""The phases along the reply's path against the caller's clock."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from headrace.cli.latency_budget import make_budget, percentile, reply_path


@dataclass(frozen=True)
class Row:
    step: str
    phase: str
    receiver: str
    count: int
    mean_us: float


def hop(step: str, receiver: str, count: int, mean_us: float) -> list[Row]:
    inner = [Row(step, phase, "", count, mean_us) for phase in ("queue", "sidecar-in", "component", "sidecar-out")]
    return [*inner, Row(step, "publish", receiver, count, mean_us)]


ROWS = [
    Row("gateway", "gateway-in", "", 10, 100.0),
    Row("gateway", "gateway-out", "", 10, 50.0),
    Row("gateway", "publish", "order", 10, 200.0),
    *hop("order", "price", 10, 10.0),
    *(Row("price", phase, "", 10, 20.0) for phase in ("queue", "sidecar-in", "component")),
    Row("price", "sidecar-out", "", 19, 7.0),
    Row("price", "publish", "check", 9, 20.0),
    Row("price", "publish", "notify", 9, 5000.0),
    Row("price", "publish", "gateway", 1, 20.0),
    *hop("check", "gateway", 9, 30.0),
    *hop("notify", "", 9, 9000.0),
    Row("check", "hop", "gateway", 9, 150.0),
]


def test_the_path_has_every_step_that_leads_to_the_caller_and_no_other() -> None:
    assert reply_path(ROWS) == ("gateway", "order", "price", "check")


def test_the_side_branch_is_not_in_the_sum() -> None:
    budget = make_budget(ROWS, [900.0] * 10)
    order, check = 5 * 10 * 10.0, 5 * 9 * 30.0
    # price: ten inputs; nineteen outputs, of which nine went to check and one to the caller
    price = 3 * 10 * 20.0 + 10 * 7.0 + 9 * 20.0 + 20.0
    assert math.isclose(budget.phases_us, 350 + (order + price + check) / 10)
    assert math.isclose(budget.caller_us, 900.0)
    assert math.isclose(budget.difference_us, 900.0 - budget.phases_us)


def test_how_long_answers_lay_at_the_callers_socket_counts_too() -> None:
    without = make_budget(ROWS, [900.0] * 10)
    budget = make_budget([*ROWS, Row("caller", "queue", "", 10, 70.0)], [900.0] * 10)
    assert math.isclose(budget.phases_us, without.phases_us + 70.0)
    assert budget.path == without.path


def test_a_flow_without_replies_has_an_empty_path() -> None:
    assert reply_path([]) == ("gateway",)
    assert make_budget([], []).adds_up


def test_it_adds_up_within_two_percent_or_three_tenths_of_a_millisecond() -> None:
    rows = [Row("gateway", "publish", "a", 1, 20_000.0), Row("a", "publish", "gateway", 1, 0.0)]
    assert make_budget(rows, [20_399.0]).adds_up
    assert not make_budget(rows, [20_500.0]).adds_up
    small = [Row("gateway", "publish", "a", 1, 1_000.0), Row("a", "publish", "gateway", 1, 0.0)]
    assert make_budget(small, [1_299.0]).adds_up
    assert not make_budget(small, [1_301.0]).adds_up


@given(st.lists(st.floats(0, 1e9), min_size=1), st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_a_percentile_is_one_of_the_values_with_that_share_below(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-6
    assert sum(value < found for value in values) <= share * len(values)
